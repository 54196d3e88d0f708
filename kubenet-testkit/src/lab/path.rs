//! Paths that take less than the interfaces at their ends.

use super::{Lab, LabError, Netns, Node, Place, ip};

/// While it lives, a node forwards to a place no more than so many bytes at once. See [`Lab::narrow`].
#[derive(Debug)]
pub struct NarrowPath {
    node: Netns,
    undo: String,
}

impl Lab {
    /// Lets the way from a node to a place take no packet larger than `mtu` bytes, which nobody but the node
    /// knows: whoever sends more learns it from an ICMP error. 1,280 or more for IPv6.
    ///
    /// # Errors
    /// [`LabError::NoSuchPod`], [`LabError::InvalidInput`] for a pod of the other node, or what `ip` reports.
    pub fn narrow(&self, node: Node, to: &Place, mtu: u32) -> Result<NarrowPath, LabError> {
        let own = self.node(node);
        let interface = match to {
            Place::Pod(name) => {
                let pod = self.pod(name)?;
                if pod.node() != node {
                    return Err(LabError::InvalidInput(format!("pod {name} is not on {node}")));
                }
                pod.host_interface().to_owned()
            }
            Place::Node(_) | Place::Outside => own.external_interface().to_owned(),
        };
        let (mut narrow, mut undo) = (String::new(), String::new());
        for &family in self.families() {
            let (address, source) = (self.address(to, family)?, self.address(&node.into(), family)?);
            let route = format!("{address} dev {interface} src {source}");
            narrow += &format!("route replace {route} mtu {mtu}\n");
            undo += &match to {
                Place::Pod(_) => format!("route replace {route}\n"),
                Place::Node(_) | Place::Outside => format!("route del {route}\n"),
            };
        }
        ip::batch(Some(own.netns().name()), &narrow)?;
        Ok(NarrowPath { node: own.netns().clone(), undo })
    }
}

impl Drop for NarrowPath {
    fn drop(&mut self) {
        // The namespace may be gone, and the route with it.
        let _ = ip::batch(Some(self.node.name()), &self.undo);
    }
}

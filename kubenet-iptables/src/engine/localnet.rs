//! `route_localnet`: with it the kernel sends packets of 127.0.0.0/8 out, and takes in the answers.
//!
//! Loopback node ports need it, and it opens the node's own sockets to its neighbours (CVE-2020-8558) unless rules
//! close them again ([N1](kubenet_core::resolve)): so it is set after these rules, and taken back before them.

use std::{fs, io};

use kubenet_core::{
    datapath::{DatapathError, ErrorKind},
    model::IpFamily,
    route::NodeRouting,
};

use super::{Engine, canary};
use crate::{
    exec::{ExecError, Tools},
    probe::legacy_table_exists,
};

/// Of the network namespace of the thread that opens it.
const FILE: &str = "/proc/sys/net/ipv4/conf/all/route_localnet";
const NAME: &str = "net.ipv4.conf.all.route_localnet";

fn is_on() -> io::Result<bool> {
    Ok(fs::read_to_string(FILE)?.trim() != "0")
}

fn set(on: bool) -> io::Result<()> {
    fs::write(FILE, if on { "1" } else { "0" })
}

/// Whether rules hold the chain of some datapath, this one's or another's, that makes `route_localnet` safe.
fn is_guarded(rules: &str, but_by: Option<&str>) -> bool {
    let mut chains = rules.lines().filter_map(|line| line.strip_prefix(':')?.split(' ').next());
    chains.any(|chain| chain.ends_with("-LOCALNET") && Some(chain) != but_by)
}

impl Engine {
    fn localnet_error(&self, operation: &'static str, source: io::Error) -> DatapathError {
        let kind = match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorKind::Permission,
            _ => ErrorKind::Unavailable,
        };
        let message = format!(
            "node ports on loopback addresses need {NAME}=1, which cannot be set here: set it beforehand, or do not \
             ask for them"
        );
        DatapathError::with_source(self.name, operation, kind, message, source)
    }

    fn tools_of(&self, family: IpFamily) -> Option<&Tools> {
        self.tools.iter().find(|tools| tools.family == family)
    }

    /// Before the rules of a node: whether it can be set, where it is needed; and takes it back where it no longer
    /// is.
    pub(super) fn prepare_localnet(
        &self,
        operation: &'static str,
        node: &NodeRouting,
    ) -> Result<(), DatapathError> {
        let Some(tools) = self.tools_of(IpFamily::V4) else { return Ok(()) };
        let stays = &self.context.names.localnet_stays;
        let exec_error = |error| self.exec_error(operation, IpFamily::V4, error);
        if node.loopback_node_ports.is_empty() {
            return self.close_localnet().map_err(exec_error);
        }
        let served = self.planner.as_ref().is_some_and(|p| !p.table().node().loopback_node_ports.is_empty());
        if !is_on().map_err(|source| self.localnet_error(operation, source))? {
            let opened = fs::OpenOptions::new().write(true).open(FILE);
            opened.map_err(|source| self.localnet_error(operation, source))?;
            if !served {
                // Of a run that was killed; whoever set it before that has taken it back.
                canary::take_away(tools, stays).map_err(exec_error)?;
            }
        } else if !served && !self.is_guarded(None).map_err(exec_error)? {
            self.localnet_is_foreign.set(true);
            if let Err(error) = canary::put(tools, stays) {
                tracing::info!(%error, "a later run will not know that {NAME} was set before");
            }
        }
        Ok(())
    }

    /// After the rules of a node: sets it where it is needed.
    pub(super) fn open_localnet(
        &self,
        operation: &'static str,
        node: &NodeRouting,
    ) -> Result<(), DatapathError> {
        let needed = !node.loopback_node_ports.is_empty() && self.tools_of(IpFamily::V4).is_some();
        if !needed || is_on().unwrap_or(false) {
            return Ok(());
        }
        set(true).map_err(|source| self.localnet_error(operation, source))
    }

    /// After an update that failed: the rules are those of before.
    pub(super) fn restore_localnet(&self) {
        let Some(planner) = &self.planner else { return };
        if let Err(error) = self.open_localnet("apply", planner.table().node()) {
            tracing::warn!(%error, "loopback node ports do not answer until the next update");
        }
    }

    /// Before our rules go: takes it back, unless somebody else set it or another datapath needs it.
    pub(super) fn close_localnet(&self) -> Result<(), ExecError> {
        let Some(tools) = self.tools_of(IpFamily::V4).filter(|_| is_on().unwrap_or(false)) else {
            return Ok(());
        };
        let ours = self.context.names.localnet.as_ref();
        let has_ours = tools.save()?.lines().any(|line| line.starts_with(&format!(":{ours} ")));
        let stays = &self.context.names.localnet_stays;
        // What an earlier run found, too.
        let is_foreign = self.localnet_is_foreign.take() | canary::is_there(tools, stays)?;
        if !has_ours || is_foreign || self.is_guarded(Some(ours))? {
            return canary::take_away(tools, stays);
        }
        set(false).map_err(|source| {
            let message =
                format!("{NAME} could not be set to 0: until it is, rules must drop what is for 127.0.0.0/8");
            ExecError { source: Some(source), ..ExecError::new(ErrorKind::Unavailable, message) }
        })
    }

    /// Whether there is a guard, in this variant or the other, but for ours in this one.
    fn is_guarded(&self, but_by: Option<&str>) -> Result<bool, ExecError> {
        if let Some(tools) = self.tools_of(IpFamily::V4)
            && is_guarded(&tools.save()?, but_by)
        {
            return Ok(true);
        }
        // Asking the legacy programs for a table makes the kernel create it.
        if self.name == "iptables-nft" && !legacy_table_exists(IpFamily::V4, "filter") {
            return Ok(false);
        }
        let other = self.other.iter().find(|tools| tools.family == IpFamily::V4);
        Ok(other.map(Tools::save).transpose()?.is_some_and(|rules| is_guarded(&rules, None)))
    }

    /// Whether the kernel does what a node that was read asks for.
    pub(super) fn has_localnet(&self, node: &NodeRouting) -> bool {
        node.loopback_node_ports.is_empty() || is_on().unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_datapaths_guard_is_known_by_its_chain() {
        let rules = "*filter\n:INPUT ACCEPT [0:0]\n:KUBE-LOCALNET - [0:0]\n-A INPUT -j X-LOCALNET\n";
        assert!(is_guarded(rules, None));
        assert!(!is_guarded(rules, Some("KUBE-LOCALNET")));
        assert!(is_guarded(rules, Some("OTHER-LOCALNET")));
        assert!(!is_guarded("*filter\n:KUBE-FORWARD - [0:0]\n", None));
    }
}

//! The transactions.

use std::{collections::BTreeSet, fmt::Write as _, net::SocketAddr};

use kubenet_core::route::Frontend;

use super::{Classic, Port};

/// The mark of packets whose source is to be replaced.
const MARK: &str = "0x4000/0x4000";

impl Classic {
    /// The list, the chains of these Service ports, and chains that go. With `fixed`, also what never changes.
    pub(super) fn transaction(&self, changed: Vec<Frontend>, gone: &BTreeSet<String>, fixed: bool) -> String {
        let mut text = String::new();
        if fixed {
            text += &filter();
        }
        text += "*nat\n:KUBE-SERVICES - [0:0]\n";
        if fixed {
            text += ":KUBE-NODEPORTS - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n";
        }
        let changed: Vec<_> = changed.iter().filter_map(|frontend| self.ports.get(frontend)).collect();
        changed.iter().for_each(|port| port.declare(&mut text));
        for chain in gone {
            line(&mut text, format_args!(":{chain} - [0:0]"));
        }
        if fixed {
            text += &masquerading();
        }
        for port in self.ports.values() {
            let (address, number, protocol) = (port.frontend.ip(), port.frontend.port(), &port.protocol);
            let comment = self.comment(&format!("{} cluster IP", port.name));
            line(
                &mut text,
                format_args!(
                    "-A KUBE-SERVICES{comment} -m {protocol} -p {protocol} -d {address}/32 --dport {number} -j {}",
                    port.chain
                ),
            );
        }
        let comment = self.comment("node ports come last");
        line(
            &mut text,
            format_args!("-A KUBE-SERVICES{comment} -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS"),
        );
        changed.iter().for_each(|port| self.rules(&mut text, port));
        for chain in gone {
            line(&mut text, format_args!("-X {chain}"));
        }
        text + "COMMIT\n"
    }

    /// Chains of Service ports that nothing refers to yet.
    pub(super) fn chains_alone(&self, frontends: &[Frontend]) -> String {
        let ports: Vec<_> = frontends.iter().filter_map(|frontend| self.ports.get(frontend)).collect();
        let mut text = String::from("*nat\n:KUBE-MARK-MASQ - [0:0]\n");
        text += "-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n";
        ports.iter().for_each(|port| port.declare(&mut text));
        ports.iter().for_each(|port| self.rules(&mut text, port));
        text + "COMMIT\n"
    }

    fn rules(&self, text: &mut String, port: &Port) {
        let Port { name, frontend, protocol, chain, endpoints } = port;
        let (address, number) = (frontend.ip(), frontend.port());
        let comment = self.comment(&format!("{name} cluster IP"));
        let pods = &self.pod_cidr;
        line(
            text,
            format_args!(
                "-A {chain}{comment} -m {protocol} -p {protocol} -d {address}/32 --dport {number} ! -s {pods} -j KUBE-MARK-MASQ"
            ),
        );
        for (place, (at, endpoint)) in endpoints.iter().enumerate() {
            let comment = self.comment(&format!("{name} -> {at}"));
            let left = endpoints.len() - place;
            let chance = if left > 1 {
                format!(" -m statistic --mode random --probability {:.10}", 1.0 / left as f64)
            } else {
                String::new()
            };
            line(text, format_args!("-A {chain}{comment}{chance} -j {endpoint}"));
        }
        for (at, endpoint) in endpoints {
            self.endpoint(text, name, protocol, *at, endpoint);
        }
    }

    fn endpoint(&self, text: &mut String, name: &str, protocol: &str, at: SocketAddr, chain: &str) {
        let comment = self.comment(name);
        line(text, format_args!("-A {chain}{comment} -s {}/32 -j KUBE-MARK-MASQ", at.ip()));
        line(
            text,
            format_args!("-A {chain}{comment} -m {protocol} -p {protocol} -j DNAT --to-destination {at}"),
        );
    }

    fn comment(&self, text: &str) -> String {
        if self.comments() { format!(" -m comment --comment \"{text}\"") } else { String::new() }
    }
}

impl Port {
    fn declare(&self, text: &mut String) {
        line(text, format_args!(":{} - [0:0]", self.chain));
        for (_, endpoint) in &self.endpoints {
            line(text, format_args!(":{endpoint} - [0:0]"));
        }
    }
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{line}");
}

/// What forwarded packets meet.
fn filter() -> String {
    format!(
        "*filter\n\
         :KUBE-FORWARD - [0:0]\n\
         -A FORWARD -j KUBE-FORWARD\n\
         -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -A KUBE-FORWARD -m mark --mark {MARK} -j ACCEPT\n\
         -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         COMMIT\n"
    )
}

/// The jumps from the kernel's own chains, and the chains that replace sources.
fn masquerading() -> String {
    let jumps = [("PREROUTING", "SERVICES"), ("OUTPUT", "SERVICES"), ("POSTROUTING", "POSTROUTING")];
    let rules: String = jumps.iter().map(|(from, to)| format!("-A {from} -j KUBE-{to}\n")).collect();
    format!(
        "{rules}\
         -A KUBE-POSTROUTING -m mark ! --mark {MARK} -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
         -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n"
    )
}

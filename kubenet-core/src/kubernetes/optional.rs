//! Fields of a Service that are ignored, with a notice, where they cannot be used: the rest of the object is
//! good without them.

use std::net::IpAddr;

use k8s_openapi::api::core::v1;

use super::{Notice, conversion::Checks, meta, parse_address, parse_cidr, service::written_cluster_ips};
use crate::model::{Algorithm, IpFamily, ServiceBuilder, quoted, unicast};

pub(super) struct Optional<'a> {
    title: &'a str,
    object: &'a v1::Service,
    spec: &'a v1::ServiceSpec,
    /// The families in which the Service has a cluster IP.
    families: Vec<IpFamily>,
    pub(super) notices: Vec<Notice>,
}

impl<'a> Optional<'a> {
    pub(super) fn new(title: &'a str, object: &'a v1::Service, spec: &'a v1::ServiceSpec) -> Self {
        let cluster_ips = written_cluster_ips(spec).filter_map(|(_, text)| parse_address(text).ok());
        let families = cluster_ips.map(IpFamily::of).collect();
        Self { title, object, spec, families, notices: Vec::new() }
    }

    fn note(&mut self, field: String, note: String) {
        self.notices.push(Notice::new(self.title, field, note));
    }

    /// [O4]: an address of the wrong family is ignored.
    fn is_of_our_family(&mut self, field: &str, address: IpAddr, what: impl std::fmt::Display) -> bool {
        let family = IpFamily::of(address);
        let ours = self.families.contains(&family);
        if !ours {
            let note = format!("{what} is ignored: the Service has no {family} cluster IP");
            self.note(field.into(), note);
        }
        ours
    }

    /// [F2].
    pub(super) fn external_ips(
        &mut self,
        mut builder: ServiceBuilder,
        checks: &mut Checks<'_>,
    ) -> ServiceBuilder {
        for (i, text) in self.spec.external_ips.iter().flatten().enumerate() {
            let field = format!("spec.externalIPs[{i}]");
            match parse_address(text) {
                Ok(address) if self.is_of_our_family(&field, address, address) => {
                    builder = builder.external_ip(address);
                }
                Ok(_) => {}
                Err(error) => checks.add(field, text, error.to_string()),
            }
        }
        builder
    }

    /// [F3]. A controller wrote them, into the status: a bad one must not take the Service away.
    pub(super) fn load_balancer_ips(&mut self, mut builder: ServiceBuilder) -> ServiceBuilder {
        let load_balancer = self.object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let ingress = load_balancer.and_then(|lb| lb.ingress.as_deref()).unwrap_or_default();
        for (i, ingress) in ingress.iter().enumerate() {
            let field = format!("status.loadBalancer.ingress[{i}]");
            match meta::text(ingress.ip_mode.as_ref()) {
                None | Some("VIP") => {}
                // The load balancer sends to the node ports by itself.
                Some("Proxy") => continue,
                Some(other) => {
                    let note = format!("is ignored: ipMode {} must be VIP or Proxy", quoted(other));
                    self.note(field, note);
                    continue;
                }
            }
            let Some(text) = meta::text(ingress.ip.as_ref()) else { continue };
            match parse_address(text).map_err(|e| e.to_string()).and_then(|a| Ok(unicast(a).map(|()| a)?)) {
                Ok(address) if self.is_of_our_family(&field, address, address) => {
                    builder = builder.load_balancer_ip(address);
                }
                Ok(_) => {}
                Err(rule) => self.note(format!("{field}.ip"), format!("{} is ignored: {rule}", quoted(text))),
            }
        }
        builder
    }

    /// [R1].
    pub(super) fn source_ranges(&mut self, mut builder: ServiceBuilder) -> ServiceBuilder {
        for (i, text) in self.spec.load_balancer_source_ranges.iter().flatten().enumerate() {
            let field = format!("spec.loadBalancerSourceRanges[{i}]");
            match parse_cidr(text) {
                Ok(range) => {
                    self.is_of_our_family(&field, range.addr(), range);
                    builder = builder.source_range(range);
                }
                Err(error) => {
                    self.note(field, format!("{} admits nobody: {error}", quoted(text)));
                    builder = builder.unreadable_source_range();
                }
            }
        }
        builder
    }

    /// `kubenet.dev/algorithm`.
    pub(super) fn algorithm(&mut self, builder: ServiceBuilder) -> ServiceBuilder {
        const ANNOTATION: &str = Algorithm::ANNOTATION;
        let annotations = self.object.metadata.annotations.as_ref();
        let Some(name) = annotations.and_then(|all| all.get(ANNOTATION)) else { return builder };
        match name.parse() {
            Ok(algorithm) => builder.algorithm(algorithm),
            Err(rule) => {
                let note = format!("{} is ignored: {rule}; backends are picked at random", quoted(name));
                self.note(format!("metadata.annotations[{ANNOTATION}]"), note);
                builder
            }
        }
    }
}

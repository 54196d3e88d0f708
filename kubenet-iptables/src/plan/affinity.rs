//! Session affinity ([A1] to [A3]) with the kernel's match `recent`.
//!
//! Each backend of a Service port has a list of the clients that it was given to, under the name that kube-proxy
//! uses: that of the backend's chain `KUBE-SEP-…`, whether there is such a chain or not. The name follows from
//! the Service port, the protocol and the backend, so all frontends of the port share it.
//!
//! ```text
//! KUBE-SVC-…  a client on the first backend's list ──► first backend, noted again
//!             a client on the second one's         ──► second backend, noted again
//!             one in two                           ──► first backend, noted
//!             the rest                             ──► second backend, noted
//! ```
//!
//! A list is in the kernel while some rule has its name, so a backend that goes takes its clients along, and one
//! that is not in the set at hand is not looked for ([A2]). The time stands in the rule that looks ([A3]). The only
//! backend of a set is noted, too: there may be more one day.
//!
//! A tree of lists, as [`odds`](super::odds) has one of chains, would spare most of the looking, but the upper
//! lists would hold the clients of many backends, and a list holds few: 100, unless the kernel was told otherwise.
//!
//! [A1]: kubenet_core::resolve
//! [A2]: kubenet_core::resolve
//! [A3]: kubenet_core::resolve

use std::num::NonZeroU32;

use kubenet_core::route::Backend;

use super::{group::Group, serve::Set};
use crate::rule::{ChainName, Does, Recent, Rule, Target};

impl Group<'_> {
    fn list(&self, set: &Set, backend: &Backend) -> ChainName {
        self.context.names.endpoint(&set.identity, backend.socket_addr())
    }

    /// Notes that a client was given to this backend, where that matters.
    ///
    /// A backend has one chain, whatever the set: it notes for all of them if it does for one.
    pub(super) fn noted(&self, set: &Set, backend: &Backend) -> Option<Recent> {
        self.sticky.then(|| Recent { list: self.list(set, backend), does: Does::Set })
    }

    /// The rules that send a client to the backend that it has, before one is picked.
    pub(super) fn known_clients(&self, set: &Set) -> Vec<Rule> {
        let seconds = set.affinity.and_then(|affinity| NonZeroU32::new(affinity.timeout_seconds()));
        let Some(seconds) = seconds else { return Vec::new() };
        let mut rules: Vec<Rule> = Vec::with_capacity(set.backends.len());
        for backend in set.backends.iter() {
            let list = self.list(set, backend);
            rules.push(if self.context.hairpin {
                let translate = Rule::to(Target::Dnat(backend.socket_addr())).protocol(set.protocol);
                translate.recent(Some(Recent { list, does: Does::Update(seconds) }))
            } else {
                Rule::jump(&list).recent(Some(Recent { list: list.clone(), does: Does::Check(seconds) }))
            });
        }
        if let Some(first) = rules.first_mut() {
            first.comment.clone_from(&set.label);
        }
        rules
    }
}

//! What is said of a flow: as JSON for scripts, as text for people.

use std::{fmt::Write, net::IpAddr};

use kubenet_core::{route::Route, route::ServicePortName};
use kubenet_testkit::memory::{Choice, Verdict};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{flow::Dialled, model::Model, why};

#[derive(Debug)]
pub(crate) struct Answer {
    verdict: Verdict,
    service_port: Option<ServicePortName>,
    why: Vec<String>,
}

/// A line of output: the flow as it was given, then the answer.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    #[serde(flatten)]
    flow: &'a Map<String, Value>,
    verdict: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    backends: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    masquerade: Option<bool>,
    /// The backends for which the source address is replaced, where it is not so for all or none.
    #[serde(skip_serializing_if = "Option::is_none")]
    masqueraded_backends: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_port: Option<String>,
    why: &'a [String],
}

impl Answer {
    pub(crate) fn of(model: &Model, dialled: &Dialled) -> Self {
        let verdict = model.datapath.route(&dialled.flow());
        let table = model.cluster.table();
        let route = table.lookup(dialled.to, dialled.port, dialled.protocol).map(|route| &**route);
        let why = why::explain(model, dialled, route, &verdict);
        Self { verdict, service_port: route.map(|route: &Route| route.service_port.clone()), why }
    }

    fn verdict(&self) -> &'static str {
        match self.verdict {
            Verdict::Forward(_) => "forward",
            Verdict::Reject => "reject",
            Verdict::Drop => "drop",
            Verdict::Pass => "pass",
        }
    }

    fn choices(&self) -> Option<&[Choice]> {
        match &self.verdict {
            Verdict::Forward(choices) => Some(choices),
            _ => None,
        }
    }

    pub(crate) fn json(&self, flow: &Map<String, Value>) -> serde_json::Result<String> {
        let names = |wanted: fn(&&Choice) -> bool| -> Option<Vec<String>> {
            let mut names: Vec<_> = (self.choices()?.iter().filter(wanted))
                .map(|choice| choice.backend.socket_addr().to_string())
                .collect();
            names.sort_unstable();
            Some(names)
        };
        let backends = names(|_| true);
        let masqueraded = names(|choice| choice.masquerade);
        serde_json::to_string(&Line {
            flow,
            verdict: self.verdict(),
            masquerade: backends.as_ref().map(|all| masqueraded.as_ref() == Some(all)),
            masqueraded_backends: masqueraded
                .filter(|some| !some.is_empty() && Some(some) != backends.as_ref()),
            backends,
            service_port: self.service_port.as_ref().map(ToString::to_string),
            why: &self.why,
        })
    }

    pub(crate) fn text(&self, Dialled { from, to, port, protocol }: &Dialled) -> String {
        let to = match to {
            IpAddr::V4(to) => format!("{to}:{port}"),
            IpAddr::V6(to) => format!("[{to}]:{port}"),
        };
        let mut text = format!("{from} -> {to}/{protocol}\n");
        let whose = self.service_port.as_ref().map(|name| format!(" of {name}")).unwrap_or_default();
        match self.choices() {
            None => {
                let _ = writeln!(text, "{}{whose}", self.verdict());
            }
            Some(choices) => {
                let _ = match choices.len() {
                    1 => writeln!(text, "forward to the backend{whose}"),
                    n => writeln!(text, "forward to one of {n} backends{whose}"),
                };
                for choice in choices {
                    let here = if choice.backend.local { ", on this node" } else { "" };
                    let _ = writeln!(
                        text,
                        "  {}, which sees {}{here}",
                        choice.backend.socket_addr(),
                        choice.sees
                    );
                }
            }
        }
        text.push_str("why\n");
        for reason in &self.why {
            let _ = writeln!(text, "  {reason}");
        }
        text
    }
}

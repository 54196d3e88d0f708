//! What is said of a flow: as JSON for scripts, as text for people.

use std::{
    fmt::Write,
    net::{IpAddr, SocketAddr},
};

use kubenet_core::route::{Route, ServicePortName};
use kubenet_examples::trace::Dialled;
use kubenet_testkit::memory;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{model::Model, why};

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) verdict: &'static str,
    /// Where it is forwarded.
    pub(crate) choices: Option<Vec<Choice>>,
    pub(crate) service_port: Option<ServicePortName>,
    pub(crate) why: Vec<String>,
}

/// A backend that may be picked.
#[derive(Debug)]
pub(crate) struct Choice {
    pub(crate) backend: SocketAddr,
    pub(crate) masquerade: bool,
    /// Whom it sees.
    pub(crate) sees: Vec<IpAddr>,
    pub(crate) here: bool,
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

/// The word for a verdict of the reference.
pub(crate) fn word(verdict: &memory::Verdict) -> &'static str {
    match verdict {
        memory::Verdict::Forward(_) => "forward",
        memory::Verdict::Reject => "reject",
        memory::Verdict::Drop => "drop",
        memory::Verdict::Pass => "pass",
    }
}

impl Answer {
    /// What the reference says.
    pub(crate) fn of(model: &Model, dialled: &Dialled) -> Self {
        let verdict = model.datapath.route(&dialled.flow());
        let route = model.route(dialled);
        let why = why::explain(model, dialled, route, &verdict);
        let choices = match &verdict {
            memory::Verdict::Forward(choices) => Some(choices.iter().map(Choice::of).collect()),
            _ => None,
        };
        let service_port = route.map(|route: &Route| route.service_port.clone());
        Self { verdict: word(&verdict), choices, service_port, why }
    }

    pub(crate) fn json(&self, flow: &Map<String, Value>) -> serde_json::Result<String> {
        let names = |wanted: fn(&&Choice) -> bool| -> Option<Vec<String>> {
            let choices = self.choices.as_ref()?;
            let mut names: Vec<_> =
                choices.iter().filter(wanted).map(|choice| choice.backend.to_string()).collect();
            names.sort_unstable();
            Some(names)
        };
        let backends = names(|_| true);
        let masqueraded = names(|choice| choice.masquerade);
        serde_json::to_string(&Line {
            flow,
            verdict: self.verdict,
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
        match &self.choices {
            None => {
                let _ = writeln!(text, "{}{whose}", self.verdict);
            }
            Some(choices) => {
                let _ = match choices.len() {
                    1 => writeln!(text, "forward to the backend{whose}"),
                    n => writeln!(text, "forward to one of {n} backends{whose}"),
                };
                for Choice { backend, sees, here, .. } in choices {
                    let here = if *here { ", on this node" } else { "" };
                    let sees: Vec<_> = sees.iter().map(ToString::to_string).collect();
                    let _ = writeln!(text, "  {backend}, which sees {}{here}", sees.join(" or "));
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

impl Choice {
    fn of(choice: &memory::Choice) -> Self {
        Self {
            backend: choice.backend.socket_addr(),
            masquerade: choice.masquerade,
            sees: vec![choice.sees],
            here: choice.backend.local,
        }
    }
}

//! One event of a flow, as a line.

use std::net::SocketAddr;

use kubenet_core::datapath::DatapathEvent;
use serde_json::json;

/// The event for a person or, as JSON, for a program. `None` for events that are none of flows.
pub fn line(event: &DatapathEvent, json: bool) -> Option<String> {
    let from =
        |client: Option<SocketAddr>| client.map_or_else(|| "this node".to_owned(), |at| at.to_string());
    Some(match event {
        DatapathEvent::FlowStarted { protocol, client, frontend, backend } if json => json!({
            "event": "flow", "protocol": protocol.to_string(), "client": client, "frontend": frontend,
            "backend": backend,
        })
        .to_string(),
        DatapathEvent::FlowStarted { protocol, client, frontend, backend } => {
            format!("flow     {protocol} from {} to {frontend}: goes to {backend}", from(*client))
        }
        DatapathEvent::PacketDropped { reason, protocol, client, destination } if json => json!({
            "event": "drop", "reason": reason, "protocol": protocol.map(|p| p.to_string()), "client": client,
            "destination": destination,
        })
        .to_string(),
        DatapathEvent::PacketDropped { reason, protocol, client, destination } => {
            let protocol = protocol.map_or_else(|| "packet".to_owned(), |p| p.to_string());
            format!("drop     {protocol} from {} to {destination}: {reason}", from(*client))
        }
        DatapathEvent::Missed { count } if json => json!({ "event": "missed", "count": count }).to_string(),
        DatapathEvent::Missed { count } => {
            format!("missed   {count} events: more than may be reported in a time, or are read")
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use kubenet_core::model::Protocol;

    use super::*;

    #[test]
    fn a_line_says_who_dialled_what_and_what_became_of_it() {
        let flow = DatapathEvent::FlowStarted {
            protocol: Protocol::Tcp,
            client: None,
            frontend: "10.96.0.1:80".parse().unwrap(),
            backend: "10.244.1.2:8080".parse().unwrap(),
        };
        assert_eq!(
            line(&flow, false).unwrap(),
            "flow     TCP from this node to 10.96.0.1:80: goes to 10.244.1.2:8080"
        );
        let read: serde_json::Value = serde_json::from_str(&line(&flow, true).unwrap()).unwrap();
        assert_eq!(read["backend"], "10.244.1.2:8080");
        assert!(read["client"].is_null());
        assert_eq!(line(&DatapathEvent::Draining, false), None);
    }
}

//! What no machine at hand lacks. Needs root.

use std::time::Duration;

use kubenet_core::{
    model::Protocol,
    route::{
        Backend as RouteBackend, Frontend, FrontendKind, Masquerade, Revision, ServicePortName, Target,
        WhenEmpty,
    },
};

use super::*;
use crate::{config::Settings, exec::Backend, netns, registry::Place, rule::Table};

/// An engine in the calling thread's network namespace, as on a kernel without connection tracking over
/// netlink.
fn without_netlink() -> Engine {
    let programs = Settings {
        directory: None,
        lock_wait: Duration::from_secs(5),
        lock_file: None,
        time_limit: Duration::from_secs(60),
    };
    let tools = vec![programs.tools(Backend::Nft, IpFamily::V4).unwrap()];
    let context = Context {
        names: Names::new("KUBE"),
        random_fully: true,
        hairpin: true,
        sctp: true,
        accept_invalid: false,
        families: vec![IpFamily::V4],
    };
    let namespace = netns::identity().unwrap();
    let place = Place { namespace, backend: Backend::Nft, prefix: "KUBE".into() };
    let (capabilities, claim) = (Capabilities::basic(), Claim::new(place));
    let name = Backend::Nft.datapath_name();
    let events = EventHub::default();
    Engine::new(name, Arc::new(context), tools, Vec::new(), false, capabilities, claim, events)
}

fn table() -> Arc<RouteTable> {
    let port = 80.try_into().unwrap();
    let backend = RouteBackend::new([192, 0, 2, 2].into(), port, false);
    let target = Target { backends: [backend].into(), when_empty: WhenEmpty::Reject };
    let name = ServicePortName { namespace: "demo".into(), service: "web".into(), port: "".into() };
    let frontend = Frontend::ip([10, 96, 0, 10].into(), port, Protocol::Tcp);
    let route = Route::new(frontend, FrontendKind::ClusterIp, name, target, Masquerade::NEVER);
    Arc::new(RouteTable::new(Revision(1), Arc::default(), [Arc::new(route)]))
}

#[test]
fn flows_that_cannot_be_counted_are_not_said_to_be_none() {
    let tried = netns::in_a_new_one(|| {
        let mut engine = without_netlink();
        engine.replace(table()).unwrap();
        for _ in 0..2 {
            let error = engine.drain().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            assert!(error.message().contains("nf_conntrack_netlink"), "{error}");
            // It drains all the same.
            let saved = engine.save("test", &engine.tools[0]).unwrap();
            let names = &engine.context.names;
            let has =
                |table, name: &crate::rule::ChainName| saved.chains.contains_key(&(table, name.clone()));
            assert!(!has(Table::Nat, &names.services) && has(Table::Filter, &names.forward));
            assert!(!engine.claim.is_owner());
        }
        // Where a successor serves, closing ends nothing: that is known.
        let mut successor = without_netlink();
        successor.replace(table()).unwrap();
        assert_eq!(engine.drain().unwrap().flows, 0);
        engine.close(Close::Remove).unwrap();
        assert_eq!(successor.read().unwrap(), *table());
        successor.close(Close::Remove).unwrap();
    });
    match tried {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            kubenet_testkit::conformance::skip(error);
        }
        Err(error) => panic!("{error}"),
    }
}

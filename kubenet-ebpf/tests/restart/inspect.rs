//! Whoever looks in sees what packets meet.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures::executor::block_on;
use kubenet_core::{
    datapath::{Close, Datapath, ErrorKind},
    model::{Affinity, Protocol},
    route::Route,
};
use kubenet_ebpf::{Inspector, Metric, remove_pins};

use super::*;

#[test]
fn an_inspector_sees_routes_backends_connections_and_clients() {
    let Some((lab, _servers, bpffs)) = start() else { return };
    let pins = bpffs.pin_dir();
    let missing = Inspector::open(&pins).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Unavailable);
    assert!(missing.message().contains("kubenet-test/v"), "{missing}");

    let sticky = |route: Arc<Route>| {
        let mut route = Route::clone(&route);
        route.affinity = Affinity::new(600);
        Arc::new(route)
    };
    let table = table(&lab, 1, routes(&lab, &["there"]).into_iter().map(sticky));
    let datapath = pinned(&lab, &pins, AttachMode::Auto);
    replace(&datapath, &table);
    let clients = ["client", "outside"];
    let mut open = clients.map(|client| lab.connect(place(client), target(&lab, client), SOON).unwrap());
    open.iter_mut().for_each(|connection| drop(connection.ask(SOON).unwrap()));

    // Beside the datapath, and when it is gone.
    for gone in [false, true] {
        if gone {
            block_on(datapath.drain()).unwrap();
            block_on(datapath.close(Close::Keep)).unwrap();
        }
        let inspector = Inspector::open(&pins).unwrap();
        assert_eq!(inspector.is_draining(), gone);
        let read = inspector.table().unwrap();
        assert!(read.same_routes(&table), "{:?}", read.diff(&table));
        assert_eq!(read.node(), table.node());

        let backends = inspector.backends();
        let there = table.routes().next().unwrap().internal.backends[0];
        // Two Service ports, TCP and UDP.
        assert_eq!(backends.iter().filter(|entry| entry.in_use && entry.backend == there).count(), 4);
        assert!(backends.iter().all(|entry| entry.generation == 1));

        let connections = inspector.connections().unwrap();
        assert_eq!(connections.len(), 2, "{connections:?}");
        for (client, open) in clients.iter().zip(&open) {
            let found = connections.iter().find(|c| c.client == open.local_addr().unwrap());
            let found = found.unwrap_or_else(|| panic!("{client}: {connections:?}"));
            assert_eq!(found.frontend, target(&lab, client));
            assert_eq!(found.backend, SocketAddr::new(there.address, PORT));
            let node: std::net::IpAddr = lab.node(Node::A).v4().into();
            let masqueraded = *client == "outside";
            assert_eq!(found.source.ip(), if masqueraded { node } else { found.client.ip() });
            assert_eq!(found.protocol, Protocol::Tcp);
            assert!(found.is_answered && !found.is_closing && found.idle < Duration::from_secs(30));
            let name = if masqueraded { format!("web-{NODE_PORT}") } else { "web-1".into() };
            assert_eq!(found.service_port, Some(service_port(&name)));
        }

        let sticky = inspector.clients().unwrap();
        assert_eq!(sticky.len(), 2, "{sticky:?}");
        for (client, open) in clients.iter().zip(&open) {
            let found = sticky.iter().find(|c| c.client == open.local_addr().unwrap().ip()).unwrap();
            assert_eq!(found.backend, Some(there), "{client}");
            assert!(found.service_port.is_some() && found.idle < Duration::from_secs(30));
        }
        assert_eq!(inspector.metrics().unwrap()[&Metric::NewFlow], 2);
    }
    // It held nothing back.
    let inspector = Inspector::open(&pins).unwrap();
    remove_pins(&pins).unwrap();
    assert_eq!(bpffs.tree(), Vec::<std::path::PathBuf>::new());
    drop(inspector);
    assert_eq!(attached(&lab), Vec::<String>::new());
}

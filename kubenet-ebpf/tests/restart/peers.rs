//! Packets go straight into pods after a restart, or no longer.

use futures::executor::block_on;
use kubenet_core::datapath::{Close, Datapath};

use super::*;

#[test]
fn going_straight_into_pods_is_switched_on_and_off_without_losing_a_connection() {
    let Some((lab, _servers, bpffs)) = start() else { return };
    let pins = bpffs.pin_dir();
    let first = table(&lab, 1, routes(&lab, &["here", "there"]));
    for mode in modes() {
        let start = |on: bool| {
            let builder = builder(&lab).pin_dir(&pins).attach_mode(mode).redirect_peer(on);
            let pods = lab.node(Node::A).pod_interfaces();
            let datapath = pods.into_iter().fold(builder, |b, pod| b.pod_interface(pod)).build().unwrap();
            replace(&datapath, &first);
            datapath
        };
        let mut datapath = start(false);
        let mut open = CLIENTS.map(|client| {
            let mut connection = lab.connect(place(client), target(&lab, client), SOON).unwrap();
            let backend = connection.ask(SOON).unwrap().backend;
            (client, backend, connection)
        });
        under_load(&lab, &format!("{mode:?}"), || {
            for on in [true, false, true, false] {
                block_on(datapath.close(Close::Keep)).unwrap();
                datapath = start(on);
                // Once at once, by kept routes, and once when these are looked up again.
                for _ in 0..2 {
                    for (client, backend, connection) in &mut open {
                        let answer =
                            connection.ask(SOON).unwrap_or_else(|e| panic!("{client}, on: {on}: {e}"));
                        assert_eq!(answer.backend, *backend, "{client}, on: {on}");
                    }
                    std::thread::sleep(std::time::Duration::from_millis(1200));
                }
            }
        });
        block_on(datapath.close(Close::Remove)).unwrap();
    }
}

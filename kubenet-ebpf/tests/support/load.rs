//! Clients that ask without end.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use kubenet_testkit::lab::{Lab, Node, Place};

use super::SOON;

/// A client by its name.
pub fn place(name: &str) -> Place {
    match name {
        "node" => Place::Node(Node::A),
        "outside" => Place::Outside,
        pod => Place::Pod(pod.into()),
    }
}

/// Ends the load also when the test panics.
pub struct Stop<'a>(pub &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Asks again and again until told to stop. Returns the number of answers and the failures.
pub fn load(lab: &Lab, from: &str, to: std::net::SocketAddr, stop: &AtomicBool) -> (u64, Vec<String>) {
    let (mut answers, mut failures) = (0, Vec::new());
    while !stop.load(Ordering::Relaxed) {
        if from == "outside" {
            // It is masqueraded, and a server keeps each port for a minute after the end: they are to last.
            thread::sleep(Duration::from_millis(1));
        }
        match lab.http_get(place(from), to, SOON) {
            // A SYN that is sent again comes after a second: a packet was lost.
            Ok(answer) if answer.connect > Duration::from_millis(900) => {
                failures.push(format!("{from}: connected after {:?}", answer.connect));
            }
            Ok(_) => answers += 1,
            Err(e) => failures.push(format!("{from}: {e}")),
        }
    }
    (answers, failures)
}

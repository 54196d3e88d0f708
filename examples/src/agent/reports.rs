use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, Service};
use kube::{
    Api, Client,
    core::PartialObjectMeta,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use kubenet_core::model::{validate_label, validate_name};
use prometheus::IntCounter;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tracing::{debug, warn};

/// Something to tell people as a Kubernetes Event.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) regarding: ObjectReference,
    /// Another object that has to do with it.
    pub(super) related: Option<ObjectReference>,
    pub(super) reason: &'static str,
    pub(super) action: &'static str,
    pub(super) note: String,
}

/// Takes reports. They are posted in the background, and dropped where they become too many.
#[derive(Clone, Debug)]
pub(super) struct Reports {
    queue: mpsc::Sender<Report>,
    dropped: IntCounter,
}

/// So many reports may wait.
const QUEUE: usize = 1000;
/// So many are posted at once after quiet, then one in each interval.
const BURST: u32 = 50;
const INTERVAL: Duration = Duration::from_millis(500);
/// How often the API server is asked to take a report.
const ATTEMPTS: u32 = 3;
/// Most bytes of an Event's note that the API allows.
const LONGEST_NOTE: usize = 1024;

impl Reports {
    /// The handle, and the poster, which is to be run.
    pub(super) fn new(client: Client, node_name: &str, dropped: IntCounter) -> (Self, Poster) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let reporter = Reporter { controller: "kubenet-agent".into(), instance: Some(node_name.to_owned()) };
        let recorder = Recorder::new(client.clone(), reporter);
        let poster = Poster { client, recorder, queue, dropped: dropped.clone() };
        (Self { queue: sender, dropped }, poster)
    }

    pub(super) fn tell(&self, report: Report) {
        if self.queue.try_send(report).is_err() {
            self.dropped.inc();
        }
    }
}

/// Posts reports as Kubernetes Events, not too many at a time.
pub(super) struct Poster {
    client: Client,
    recorder: Recorder,
    queue: mpsc::Receiver<Report>,
    dropped: IntCounter,
}

impl Poster {
    pub(super) async fn run(mut self) {
        let mut allowed = BURST;
        let mut since = Instant::now();
        while let Some(report) = self.queue.recv().await {
            let earned = since.elapsed().as_millis() / INTERVAL.as_millis();
            since += INTERVAL * u32::try_from(earned).unwrap_or(BURST);
            allowed = allowed.saturating_add(u32::try_from(earned).unwrap_or(BURST)).min(BURST);
            match allowed.checked_sub(1) {
                Some(left) => allowed = left,
                None => {
                    sleep(INTERVAL.saturating_sub(since.elapsed())).await;
                    since = Instant::now();
                }
            }
            self.post(report).await;
        }
    }

    async fn post(&self, report: Report) {
        let Report { mut regarding, related, reason, action, note } = report;
        // The name of an Event is made of the object's, and its path of the namespace: those of a refused object
        // may be anything.
        let name = regarding.name.as_deref().unwrap_or_default();
        let namespace_fits = regarding.namespace.as_deref().is_none_or(|name| validate_label(name).is_ok());
        if validate_name(name).is_err() || !namespace_fits {
            debug!(?regarding, note, "no Event can be about an object of this name");
            self.dropped.inc();
            return;
        }
        if regarding.uid.is_none() && regarding.kind.as_deref() == Some("Service") {
            regarding.uid = self.uid(&regarding).await;
        }
        let event = Event {
            type_: EventType::Warning,
            reason: reason.into(),
            note: Some(cut(note)),
            action: action.into(),
            secondary: related,
        };
        let mut wait = Duration::from_millis(200);
        for attempt in 1..=ATTEMPTS {
            match self.recorder.publish(&event, &regarding).await {
                Ok(()) => return,
                Err(error) if attempt == ATTEMPTS => {
                    warn!(%error, ?event.note, "a Kubernetes Event could not be posted");
                    self.dropped.inc();
                }
                Err(error) => {
                    debug!(%error, "posting the Event again");
                    sleep(wait).await;
                    wait *= 4;
                }
            }
        }
    }

    /// `kubectl describe` finds Events by the object's uid.
    async fn uid(&self, service: &ObjectReference) -> Option<String> {
        let namespace = service.namespace.as_deref().unwrap_or("default");
        let api: Api<PartialObjectMeta<Service>> = Api::namespaced(self.client.clone(), namespace);
        match api.get_opt(service.name.as_deref()?).await {
            Ok(found) => found?.metadata.uid,
            Err(error) => {
                debug!(%error, "the Service of an Event cannot be looked up");
                None
            }
        }
    }
}

fn cut(mut note: String) -> String {
    note.truncate(note.floor_char_boundary(LONGEST_NOTE));
    note
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_fits_into_an_event() {
        assert_eq!(cut("short".into()), "short");
        assert_eq!(cut("é".repeat(1000)).len(), LONGEST_NOTE);
        assert_eq!(cut(format!("x{}", "é".repeat(1000))).len(), LONGEST_NOTE - 1);
    }
}

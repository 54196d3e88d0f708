use std::{
    collections::VecDeque,
    mem,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use futures::{Stream, StreamExt, stream::BoxStream};
use parking_lot::Mutex;

use super::DatapathError;
use crate::{
    model::Protocol,
    route::{Frontend, Revision, ServicePortName},
};

/// What happens in a datapath.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum DatapathEvent {
    /// The kernel was brought to a revision.
    Applied {
        /// The revision.
        revision: Revision,
    },
    /// A route could not be served.
    RouteFailed {
        /// Its frontend.
        frontend: Frontend,
        /// Whose it is.
        service_port: ServicePortName,
        /// Why.
        error: DatapathError,
    },
    /// The kernel was found to hold something else than was programmed.
    Drift {
        /// What was found.
        detail: String,
    },
    /// A network interface was attached or detached.
    Interface {
        /// Its name.
        name: String,
        /// Whether it is attached now.
        attached: bool,
    },
    /// A flow began, and a backend was picked for it. Reported where the datapath was told to, at most so many in a
    /// time; [`DatapathEvent::Missed`] says how many more there were.
    FlowStarted {
        /// Its protocol.
        protocol: Protocol,
        /// Who opened it; `None` for a process of this node, at its socket.
        client: Option<SocketAddr>,
        /// What the client dialled.
        frontend: SocketAddr,
        /// Where the flow goes.
        backend: SocketAddr,
    },
    /// A packet was dropped, or refused with an answer to its sender. Reported as flows are.
    PacketDropped {
        /// Why, as the datapath's metrics name it: `drop_no_local_backend`.
        reason: &'static str,
        /// Its protocol, if it is one of those of Services.
        protocol: Option<Protocol>,
        /// Who sent it; `None` for a process of this node, at its socket.
        client: Option<SocketAddr>,
        /// Where it was to go. The port is 0 where it has none.
        destination: SocketAddr,
    },
    /// Events that this reader does not get, since the last of these: of flows and packets, more than may be reported
    /// in a time or than the datapath's reader kept up with; or of any kind, because this reader was too slow. Older
    /// than the events that follow.
    Missed {
        /// How many.
        count: u64,
    },
    /// The datapath takes no new flows.
    Draining,
    /// The datapath was closed.
    Closed,
}

/// An event that an [`EventHub`] can hand out: one of its kind says that others were lost.
pub trait HubEvent: Clone + Send + 'static {
    /// The event which says that the reader does not get so many events.
    fn missed(count: u64) -> Self;

    /// How many events it says that the reader does not get; `None` of any other event.
    fn missed_count(&self) -> Option<u64>;
}

impl HubEvent for DatapathEvent {
    fn missed(count: u64) -> Self {
        Self::Missed { count }
    }

    fn missed_count(&self) -> Option<u64> {
        match self {
            Self::Missed { count } => Some(*count),
            _ => None,
        }
    }
}

/// Hands events to any number of subscribers; for implementors of datapaths.
///
/// Each subscriber has room for 1,024 events and loses the oldest when it does not keep up. It is told how many, where
/// they would have been: by [`HubEvent::missed`], which is [`DatapathEvent::Missed`] of a datapath.
#[derive(Debug)]
pub struct EventHub<E = DatapathEvent>(Arc<Mutex<Subscribers<E>>>);

#[derive(Debug)]
struct Subscribers<E> {
    mailboxes: Vec<Arc<Mutex<Mailbox<E>>>>,
    ended: bool,
}

const ROOM: usize = 1024;

#[derive(Debug)]
struct Mailbox<E> {
    events: VecDeque<E>,
    /// Events that were lost before the first of `events`.
    missed: u64,
    waker: Option<Waker>,
    sender_gone: bool,
    reader_gone: bool,
}

impl<E> Default for EventHub<E> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Subscribers { mailboxes: Vec::new(), ended: false })))
    }
}

impl<E> Clone for EventHub<E> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<E: HubEvent> EventHub<E> {
    /// Hands an event to all who listen now. Never blocks on a reader.
    pub fn emit(&self, event: &E) {
        let mut wakers = Vec::new();
        self.0.lock().mailboxes.retain(|mailbox| {
            let mut mailbox = mailbox.lock();
            if mailbox.reader_gone {
                return false;
            }
            if mailbox.events.len() == ROOM
                && let Some(lost) = mailbox.events.pop_front()
            {
                let count = lost.missed_count().unwrap_or(1);
                mailbox.missed = mailbox.missed.saturating_add(count);
            }
            mailbox.events.push_back(event.clone());
            wakers.extend(mailbox.waker.take());
            true
        });
        // Without a lock: whoever is woken may read, subscribe or leave in this very call.
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Everything emitted from now on. The stream ends after [`EventHub::end`].
    pub fn subscribe(&self) -> BoxStream<'static, E> {
        let mut subscribers = self.0.lock();
        let mailbox = Arc::new(Mutex::new(Mailbox {
            events: VecDeque::new(),
            missed: 0,
            waker: None,
            sender_gone: subscribers.ended,
            reader_gone: false,
        }));
        subscribers.mailboxes.retain(|mailbox| !mailbox.lock().reader_gone);
        subscribers.mailboxes.push(Arc::clone(&mailbox));
        Reader(mailbox).boxed()
    }

    /// Whether anybody listens now.
    pub fn has_readers(&self) -> bool {
        let mut subscribers = self.0.lock();
        subscribers.mailboxes.retain(|mailbox| !mailbox.lock().reader_gone);
        !subscribers.mailboxes.is_empty()
    }

    /// Ends all streams once they are read empty, and those that are asked for later at once.
    pub fn end(&self) {
        let mut wakers = Vec::new();
        {
            let mut subscribers = self.0.lock();
            subscribers.ended = true;
            for mailbox in subscribers.mailboxes.drain(..) {
                let mut mailbox = mailbox.lock();
                mailbox.sender_gone = true;
                wakers.extend(mailbox.waker.take());
            }
        }
        wakers.into_iter().for_each(Waker::wake);
    }
}

struct Reader<E>(Arc<Mutex<Mailbox<E>>>);

impl<E: HubEvent> Stream for Reader<E> {
    type Item = E;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<E>> {
        let mut mailbox = self.0.lock();
        let missed = mem::take(&mut mailbox.missed);
        if missed > 0 {
            return Poll::Ready(Some(E::missed(missed)));
        }
        match mailbox.events.pop_front() {
            Some(event) => Poll::Ready(Some(event)),
            None if mailbox.sender_gone => Poll::Ready(None),
            None => {
                mailbox.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl<E> Drop for Reader<E> {
    fn drop(&mut self) {
        self.0.lock().reader_gone = true;
    }
}

#[cfg(test)]
mod tests {
    use std::task::Wake;

    use futures::{FutureExt, StreamExt};

    use super::*;

    fn all(reader: &mut BoxStream<'static, DatapathEvent>) -> Vec<DatapathEvent> {
        std::iter::from_fn(|| reader.next().now_or_never().flatten()).collect()
    }

    fn emit(hub: &EventHub, revisions: std::ops::Range<u64>) {
        for revision in revisions {
            hub.emit(&DatapathEvent::Applied { revision: Revision(revision) });
        }
    }

    #[test]
    fn a_slow_reader_is_told_how_many_of_the_oldest_events_it_lost_and_sees_the_end() {
        let hub = EventHub::default();
        let (mut slow, mut quick) = (hub.subscribe(), hub.subscribe());
        emit(&hub, 0..ROOM as u64);
        assert_eq!(all(&mut quick).len(), ROOM);
        emit(&hub, ROOM as u64..ROOM as u64 + 3);
        hub.end();
        assert_eq!(all(&mut quick).len(), 3, "the other reader's losses are not its own");
        let seen = slow.by_ref().collect::<Vec<_>>().now_or_never().unwrap();
        assert_eq!(seen.len(), 1 + ROOM);
        assert!(matches!(seen[0], DatapathEvent::Missed { count: 3 }));
        assert!(matches!(seen[1], DatapathEvent::Applied { revision: Revision(3) }));
        assert!(hub.subscribe().next().now_or_never().unwrap().is_none(), "ended for late readers, too");
    }

    #[test]
    fn losses_are_told_once_and_those_of_the_datapath_are_among_them() {
        let hub = EventHub::default();
        let mut reader = hub.subscribe();
        hub.emit(&DatapathEvent::Missed { count: 40 });
        emit(&hub, 0..ROOM as u64 + 1);
        assert!(matches!(all(&mut reader)[0], DatapathEvent::Missed { count: 41 }));
        emit(&hub, 0..1);
        assert!(matches!(all(&mut reader)[..], [DatapathEvent::Applied { .. }]));
    }

    /// Some executors run or drop a task in the call that wakes it.
    #[test]
    fn whoever_is_woken_may_read_on_or_leave_at_once() {
        struct Woken(Mutex<Option<BoxStream<'static, DatapathEvent>>>, Mutex<Vec<DatapathEvent>>);
        impl Wake for Woken {
            fn wake(self: Arc<Self>) {
                let Some(mut reader) = self.0.lock().take() else { return };
                self.1.lock().extend(reader.next().now_or_never().flatten());
            }
        }
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let hub = EventHub::default();
            let begin = || {
                let woken = Arc::new(Woken(Mutex::new(None), Mutex::new(Vec::new())));
                let mut reader = hub.subscribe();
                let waker = Waker::from(Arc::clone(&woken));
                assert!(reader.poll_next_unpin(&mut Context::from_waker(&waker)).is_pending());
                *woken.0.lock() = Some(reader);
                woken
            };
            let (first, second) = (begin(), begin());
            hub.emit(&DatapathEvent::Draining);
            assert!(!hub.has_readers());
            let third = begin();
            hub.end();
            done.send([first, second, third].map(|woken| woken.1.lock().len())).unwrap();
        });
        let seen = is_done.recv_timeout(std::time::Duration::from_secs(10));
        assert_eq!(seen.expect("it waits for a lock that it holds"), [1, 1, 0]);
    }

    #[test]
    fn a_dropped_reader_is_forgotten() {
        let hub = EventHub::default();
        drop(hub.subscribe());
        assert!(!hub.has_readers());
        let reader = hub.subscribe();
        assert!(hub.has_readers());
        drop(reader);
        hub.emit(&DatapathEvent::Draining);
        assert!(hub.0.lock().mailboxes.is_empty());
    }
}

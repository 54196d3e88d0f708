use std::collections::VecDeque;

use k8s_openapi::jiff::Timestamp;
use kubenet_core::model::IpFamily;
use parking_lot::Mutex;

/// What a change is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    Service,
    /// A slice, with the moment at which the control plane saw the reason for the change, where it counts.
    Slice {
        triggered: Option<(Timestamp, IpFamily)>,
    },
    Node,
}

/// The changes that were handed to the router and that the kernel does not have yet.
#[derive(Debug, Default)]
pub(super) struct Progress(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Number of the last change, from 1: the router counts alike.
    submitted: u64,
    waiting: VecDeque<(u64, Subject)>,
}

/// How many changes wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pending {
    pub(super) services: usize,
    pub(super) slices: usize,
}

impl Progress {
    /// To be called before the changes are submitted, in the same order.
    pub(super) fn submitting(&self, subjects: impl IntoIterator<Item = Subject>) {
        let mut state = self.0.lock();
        for subject in subjects {
            state.submitted += 1;
            let number = state.submitted;
            state.waiting.push_back((number, subject));
        }
    }

    /// The kernel has so many changes: those that it did not have before.
    pub(super) fn applied(&self, changes: u64) -> Vec<Subject> {
        let mut state = self.0.lock();
        let end = state.waiting.partition_point(|(number, _)| *number <= changes);
        state.waiting.drain(..end).map(|(_, subject)| subject).collect()
    }

    pub(super) fn pending(&self) -> Pending {
        let mut pending = Pending::default();
        for (_, subject) in &self.0.lock().waiting {
            match subject {
                Subject::Service => pending.services += 1,
                Subject::Slice { .. } => pending.slices += 1,
                Subject::Node => {}
            }
        }
        pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLICE: Subject = Subject::Slice { triggered: None };

    #[test]
    fn what_the_kernel_has_no_longer_waits() {
        let progress = Progress::default();
        progress.submitting([Subject::Service, SLICE, Subject::Node]);
        progress.submitting([SLICE]);
        assert_eq!(progress.pending(), Pending { services: 1, slices: 2 });
        assert_eq!(progress.applied(2), [Subject::Service, SLICE]);
        assert_eq!(progress.applied(2), []);
        assert_eq!(progress.pending(), Pending { services: 0, slices: 1 });
        assert_eq!(progress.applied(4), [Subject::Node, SLICE]);
        assert_eq!(progress.pending(), Pending::default());
    }
}

//! What was in use rests before it is used again.
//!
//! A program that runs while an entry is replaced may still read what the old entry referred to. What is given
//! back therefore rests for [`REST`]: a thousand times longer than a program runs. That costs nothing, unlike
//! waiting for an RCU grace period after every change, which takes milliseconds. Where something is
//! full and the wait would be an error, the caller does wait for a real grace period and then calls
//! [`Resting::wake_all`].

use std::{collections::VecDeque, time::Duration};

/// How long something rests.
pub(crate) const REST: Duration = Duration::from_secs(1);

/// A point of a monotonic clock, as the time since the datapath was started.
pub(crate) type Now = Duration;

/// Things that rest, oldest first.
#[derive(Clone, Debug)]
pub(crate) struct Resting<T>(VecDeque<(Now, T)>);

impl<T> Default for Resting<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T> Resting<T> {
    pub(crate) fn push(&mut self, item: T, now: Now) {
        self.0.push_back((now + REST, item));
    }

    /// The next one that has rested long enough.
    pub(crate) fn wake(&mut self, now: Now) -> Option<T> {
        match self.0.front() {
            Some((until, _)) if *until <= now => self.0.pop_front().map(|(_, item)| item),
            _ => None,
        }
    }

    /// All of them: the caller waited for an RCU grace period.
    pub(crate) fn wake_all(&mut self) -> impl Iterator<Item = T> + '_ {
        self.0.drain(..).map(|(_, item)| item)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(_, item)| item)
    }
}

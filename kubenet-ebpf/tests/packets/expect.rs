//! What tests expect of a frame.

use std::net::SocketAddr;

use crate::{
    bench::{Bench, Hook, Metric, Outcome, REDIRECT, SHOT, UNSPEC},
    frame::Frame,
};

impl Bench {
    /// Sends a frame and expects it to go on as it is.
    #[track_caller]
    pub fn expect_passed(&mut self, hook: Hook, mut frame: Frame) {
        let outcome = self.send(hook, &mut frame);
        assert_eq!(outcome, Outcome { action: UNSPEC, bytes: frame.bytes() });
    }

    /// Sends a frame and expects another one to leave by another device.
    #[track_caller]
    pub fn expect_forwarded(&mut self, hook: Hook, mut frame: Frame, from: SocketAddr, to: SocketAddr) {
        let outcome = self.send(hook, &mut frame);
        assert_eq!(outcome, Outcome { action: REDIRECT, bytes: frame.forwarded(from, to).bytes() });
    }

    /// Sends a frame and expects it to be dropped and counted.
    #[track_caller]
    pub fn expect_dropped(&mut self, hook: Hook, mut frame: Frame, metric: Metric) {
        let before = self.metric(metric);
        let outcome = self.send(hook, &mut frame);
        assert_eq!(outcome.action, SHOT);
        assert_eq!(self.metric(metric), before + 1, "{metric:?}");
    }

    /// Sends a frame and expects these bytes to come back.
    #[track_caller]
    pub fn expect_answered(&mut self, hook: Hook, mut frame: Frame, answer: impl Fn(&Frame) -> Vec<u8>) {
        let outcome = self.send(hook, &mut frame);
        assert_eq!(outcome, Outcome { action: REDIRECT, bytes: answer(&frame) });
    }
}

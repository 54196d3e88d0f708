//! One thread per datapath that runs blocking work in order, for authors of datapaths.

use std::{
    fmt, io,
    sync::mpsc,
    thread::{self, JoinHandle},
};

use futures::{channel::oneshot, future::BoxFuture};
use parking_lot::Mutex;

/// A thread that owns a value of type `T` and runs jobs on it, one after the other.
///
/// Works under any executor: [`Worker::run`] returns a future that a plain `block_on` can wait for. A job that
/// was handed in runs to its end even when the future is dropped, so no update is ever left half-done.
/// Dropping the worker waits for the jobs that were handed in.
///
/// ```
/// use kubenet_core::worker::Worker;
/// let worker = Worker::spawn("count", || Ok::<_, std::io::Error>(0u32)).unwrap();
/// let sum = futures::executor::block_on(worker.run(|n| { *n += 2; *n })).unwrap();
/// assert_eq!(sum, 2);
/// ```
pub struct Worker<T> {
    jobs: Mutex<Option<mpsc::Sender<Job<T>>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

type Job<T> = Box<dyn FnOnce(&mut T) + Send>;

/// The worker's thread ended: a job panicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the worker thread has ended")]
pub struct WorkerGone;

impl<T: 'static> Worker<T> {
    /// Starts the thread. `init` runs on it and makes the value, which never leaves the thread and need not
    /// be `Send`. Blocks until `init` has returned.
    ///
    /// # Errors
    /// Those of `init`, or of starting a thread.
    pub fn spawn<E>(name: &str, init: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<Self, E>
    where
        E: From<io::Error> + Send + 'static,
    {
        let (jobs, inbox) = mpsc::channel::<Job<T>>();
        let (ready, is_ready) = mpsc::sync_channel(1);
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            let mut value = match init() {
                Ok(value) => value,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            if ready.send(Ok(())).is_err() {
                return;
            }
            while let Ok(job) = inbox.recv() {
                job(&mut value);
            }
        })?;
        match is_ready.recv() {
            Ok(Ok(())) => Ok(Self { jobs: Mutex::new(Some(jobs)), thread: Mutex::new(Some(thread)) }),
            Ok(Err(error)) => Err(error),
            Err(mpsc::RecvError) => Err(io::Error::other(WorkerGone).into()),
        }
    }

    /// Runs a job on the thread. It is queued at once, before the future is polled.
    ///
    /// # Errors
    /// [`WorkerGone`] when this or an earlier job panicked.
    pub fn run<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut T) -> R + Send + 'static,
    ) -> BoxFuture<'static, Result<R, WorkerGone>> {
        let (done, result) = oneshot::channel();
        let queued = match &*self.jobs.lock() {
            Some(jobs) => jobs.send(Box::new(move |value| drop(done.send(job(value))))).is_ok(),
            None => false,
        };
        Box::pin(async move {
            if !queued {
                return Err(WorkerGone);
            }
            result.await.map_err(|_| WorkerGone)
        })
    }
}

impl<T> fmt::Debug for Worker<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").finish_non_exhaustive()
    }
}

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        self.jobs.get_mut().take();
        if let Some(thread) = self.thread.get_mut().take()
            && thread.thread().id() != thread::current().id()
        {
            // A panic of a job was reported through its future already.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use futures::executor::block_on;

    use super::*;

    #[test]
    fn a_dropped_future_does_not_stop_the_job() {
        let ran = Arc::new(AtomicU32::new(0));
        let worker = Worker::spawn("t", || Ok::<_, io::Error>(())).unwrap();
        let counter = Arc::clone(&ran);
        drop(worker.run(move |()| counter.fetch_add(1, Ordering::SeqCst)));
        block_on(worker.run(|()| ())).unwrap();
        assert_eq!(ran.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_panicking_job_is_an_error_and_not_a_hang() {
        let worker = Worker::spawn("t", || Ok::<_, io::Error>(())).unwrap();
        assert_eq!(block_on(worker.run(|()| panic!("wanted by the test"))), Err(WorkerGone));
        assert_eq!(block_on(worker.run(|()| 1)), Err(WorkerGone));
    }

    #[test]
    fn a_failing_start_is_reported() {
        let failed = Worker::<()>::spawn("t", || Err(io::Error::other("no")));
        assert_eq!(failed.unwrap_err().to_string(), "no");
    }
}

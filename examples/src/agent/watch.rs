use std::{fmt::Debug, time::Duration};

use futures::{Stream, StreamExt, stream, stream::BoxStream};
use kube::{
    Api, Resource,
    runtime::watcher::{self, DefaultBackoff, Error, Event, InitialListStrategy, watcher},
};
use tracing::{debug, info, warn};

use super::raw::Raw;

/// Follows all objects of a kind without end: a list, then what changes.
///
/// What kube's watcher does not do: it waits longer after every failure in a row, also after one of a list; it
/// lists again where the server refuses to watch from where we were (410 Gone), and after an event that cannot be
/// read, as nobody knows what it said; and it lists by pages where the server does not stream lists.
pub(super) fn watch<K>(
    api: Api<Raw<K>>,
    config: watcher::Config,
) -> impl Stream<Item = Result<Event<Raw<K>>, Error>> + Send
where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
    K::Scope: Send,
{
    let watch = Watch {
        events: watcher(api.clone(), config.clone()).boxed(),
        api,
        config,
        backoff: DefaultBackoff::default(),
        wait: None,
        unfinished: 0,
    };
    stream::unfold(watch, |mut watch| async { Some((watch.next().await, watch)) })
}

struct Watch<K> {
    api: Api<Raw<K>>,
    config: watcher::Config,
    events: BoxStream<'static, Result<Event<Raw<K>>, Error>>,
    backoff: DefaultBackoff,
    /// Before the next step.
    wait: Option<Duration>,
    /// Lists that began since the last one that ended.
    unfinished: u32,
}

/// So many streamed lists may break off in a row before they are no longer asked for.
const PATIENCE: u32 = 2;

impl<K> Watch<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
    K::Scope: Send,
{
    async fn next(&mut self) -> Result<Event<Raw<K>>, Error> {
        loop {
            if let Some(wait) = self.wait.take() {
                tokio::time::sleep(wait).await;
            }
            match self.events.next().await {
                Some(Ok(event)) => {
                    match &event {
                        Event::Init => self.unfinished += 1,
                        Event::InitDone => self.unfinished = 0,
                        Event::Apply(_) | Event::Delete(_) => {
                            kube::runtime::utils::Backoff::reset(&mut self.backoff)
                        }
                        Event::InitApply(_) => {}
                    }
                    if self.unfinished > PATIENCE && self.streams() {
                        self.list_by_pages("they break off");
                        continue;
                    }
                    return Ok(event);
                }
                Some(Err(error)) => {
                    let kind = K::kind(&());
                    if self.streams() && refuses_streamed_lists(&error) {
                        self.list_by_pages(&error.to_string());
                        continue;
                    }
                    self.wait = self.backoff.next();
                    if is_gone(&error) || is_garbled(&error) {
                        info!(%kind, %error, "listing again");
                        self.restart();
                    } else {
                        warn!(%kind, %error, wait = ?self.wait, "watch failed; trying again");
                    }
                    return Err(error);
                }
                // kube's watcher has no end.
                None => self.restart(),
            }
        }
    }

    fn streams(&self) -> bool {
        self.config.initial_list_strategy == InitialListStrategy::StreamingList
    }

    fn list_by_pages(&mut self, reason: &str) {
        debug!(kind = %K::kind(&()), reason, "the server does not stream lists");
        self.config.initial_list_strategy = InitialListStrategy::ListWatch;
        self.restart();
    }

    fn restart(&mut self) {
        self.events = watcher(self.api.clone(), self.config.clone()).boxed();
    }
}

/// Whether the server no longer knows the version that the watch was to begin from.
fn is_gone(error: &Error) -> bool {
    matches!(error, Error::WatchStartFailed(kube::Error::Api(status)) if status.code == 410)
}

/// Whether the server said something that is no event, or none that can be read.
fn is_garbled(error: &Error) -> bool {
    matches!(error, Error::WatchFailed(kube::Error::SerdeError(_) | kube::Error::Api(_)))
}

/// Servers without streamed lists call the parameters of one invalid.
fn refuses_streamed_lists(error: &Error) -> bool {
    matches!(error, Error::WatchStartFailed(kube::Error::Api(status)) if matches!(status.code, 400 | 422))
}

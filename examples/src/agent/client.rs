use std::time::Duration;

use kube::{Client, client::ClientBuilder};
use tower::limit::RateLimitLayer;

/// Most requests per second.
const RATE: u64 = 50;

/// A client that keeps to a rate of requests. kube's watcher alone asks again at once, and without end, where a
/// server ends each watch as soon as it has begun.
///
/// # Errors
/// The certificates or credentials of the configuration.
pub fn client(config: kube::Config) -> Result<Client, kube::Error> {
    let limit = RateLimitLayer::new(RATE, Duration::from_secs(1));
    Ok(ClientBuilder::try_from(config)?.with_layer(&limit).build())
}

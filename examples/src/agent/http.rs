use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};
use tracing::debug;

/// Makes the text of `/metrics`.
pub(super) type Render = Arc<dyn Fn() -> BoxFuture<'static, Result<Vec<u8>, String>> + Send + Sync>;

/// Connections that are served at the same time; more wait.
const CONNECTIONS: usize = 16;
/// How long one may last.
const LIFE: Duration = Duration::from_secs(30);
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves `/metrics` without end.
pub(super) async fn serve(listener: TcpListener, render: Render) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: they come back.
                debug!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let render = Arc::clone(&render);
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, Arc::clone(&render)));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(5))
                .serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = timeout(LIFE, connection).await {
                debug!(%peer, %error, "connection failed");
            }
            drop(permit);
        });
    }
}

async fn answer(request: Request<Incoming>, render: Render) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, header, body) = if request.uri().path() != "/metrics" {
        (StatusCode::NOT_FOUND, (CONTENT_TYPE, "text/plain"), b"only /metrics is here\n".to_vec())
    } else if !matches!(*request.method(), Method::GET | Method::HEAD) {
        (StatusCode::METHOD_NOT_ALLOWED, (ALLOW, "GET, HEAD"), Vec::new())
    } else {
        match render().await {
            Ok(text) => (StatusCode::OK, (CONTENT_TYPE, TEXT_FORMAT), text),
            Err(error) => {
                (StatusCode::INTERNAL_SERVER_ERROR, (CONTENT_TYPE, "text/plain"), error.into_bytes())
            }
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header.0, hyper::header::HeaderValue::from_static(header.1));
    Ok(response)
}

/// Opens a port, and says which it is.
pub(super) async fn listen(address: SocketAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

use std::{
    cell::Cell,
    convert::Infallible,
    future::{self, Future},
    io::{self, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{HeaderName, HeaderValue},
    rt::{Read, ReadBufCursor, Write},
    server::conn::http1,
    service::service_fn,
};

use super::Subject;
use crate::health::{Answer, HealthBoard, Moment};

/// A request's line and headers.
const MAX_HEAD: usize = 16 * 1024;
const CHUNK: usize = 4096;
/// What a client may still send after its answer, and for how long, before the connection is closed. Closing
/// over unread bytes would reset it, and the client might never read the answer.
const MAX_REST: usize = 64 * 1024;
const REST: Duration = Duration::from_secs(2);

/// The answer of a listener to a request.
pub(super) fn respond(board: &HealthBoard, subject: Subject, path: &str) -> Response<String> {
    let now = Moment::now();
    match (subject, path) {
        (Subject::Proxy, "/healthz") => response(board.healthz(now)),
        (Subject::Proxy, "/livez") => response(board.livez(now)),
        (Subject::Proxy, _) => empty(StatusCode::NOT_FOUND),
        // The Service has gone a moment ago, and its port will.
        (Subject::Service(port), _) => {
            board.service_answer(port, now).map_or_else(|| empty(StatusCode::SERVICE_UNAVAILABLE), response)
        }
    }
}

fn response(answer: Answer) -> Response<String> {
    let mut response = Response::new(answer.body);
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    for (name, value) in answer.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

fn empty(status: StatusCode) -> Response<String> {
    let mut response = Response::new(String::new());
    *response.status_mut() = status;
    response
}

/// Answers one request, given its path. Blocks the thread, until `until` at the longest.
pub(super) fn serve(stream: &TcpStream, until: Option<Instant>, respond: impl Fn(&str) -> Response<String>) {
    let link = Link { stream, until, readable: Cell::new(false), wants_read: Cell::new(false) };
    let service = service_fn(|request: Request<Incoming>| {
        future::ready(Ok::<_, Infallible>(respond(request.uri().path())))
    });
    let exchange = http1::Builder::new()
        .keep_alive(false)
        .title_case_headers(true)
        // The time is bounded here.
        .header_read_timeout(None)
        .max_buf_size(MAX_HEAD)
        .serve_connection(&link, service);
    // A client that broke the connection, or took too long, gets nothing more.
    let _ = link.run(pin!(exchange)).and_then(|()| link.drain());
}

/// A blocking stream for hyper. Waiting happens between polls and never in one, so hyper may try to read before
/// it has written its answer.
struct Link<'a> {
    stream: &'a TcpStream,
    until: Option<Instant>,
    /// The stream has bytes or has ended: one read does not block.
    readable: Cell<bool>,
    wants_read: Cell<bool>,
}

impl Link<'_> {
    /// Polls the exchange to its end. A request that hyper refused has ended, too.
    ///
    /// # Errors
    /// The connection broke, or its time is over.
    fn run(&self, mut exchange: Pin<&mut impl Future<Output = hyper::Result<()>>>) -> io::Result<()> {
        let woken = Arc::new(Woken(AtomicBool::new(false)));
        let waker = Waker::from(Arc::clone(&woken));
        let mut context = Context::from_waker(&waker);
        loop {
            self.wants_read.set(false);
            if exchange.as_mut().poll(&mut context).is_ready() {
                return Ok(());
            }
            if woken.0.swap(false, Ordering::SeqCst) {
                left(self.until)?;
            } else if self.wants_read.get() {
                self.wait_readable()?;
            } else {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
        }
    }

    fn wait_readable(&self) -> io::Result<()> {
        self.stream.set_read_timeout(left(self.until)?)?;
        self.stream.peek(&mut [0])?;
        self.readable.set(true);
        Ok(())
    }

    /// Ends our half, and reads what the client has sent beyond its request until it ends its own.
    fn drain(&self) -> io::Result<()> {
        let _ = self.stream.shutdown(Shutdown::Write);
        let rest = Instant::now() + REST;
        let until = Some(self.until.map_or(rest, |until| until.min(rest)));
        let mut stream = self.stream;
        let (mut bytes, mut read) = ([0; CHUNK], 0);
        while read < MAX_REST {
            stream.set_read_timeout(left(until)?)?;
            match stream.read(&mut bytes)? {
                0 => break,
                n => read += n,
            }
        }
        Ok(())
    }
}

/// The time until then; `None` is for ever.
fn left(until: Option<Instant>) -> io::Result<Option<Duration>> {
    let Some(until) = until else { return Ok(None) };
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Read for &Link<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.readable.take() {
            self.wants_read.set(true);
            return Poll::Pending;
        }
        let mut bytes = [0; CHUNK];
        let room = buffer.remaining().min(CHUNK);
        let mut stream = self.stream;
        let read = stream.read(&mut bytes[..room])?;
        buffer.put_slice(&bytes[..read]);
        Poll::Ready(Ok(()))
    }
}

impl Write for &Link<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        // An answer fits into the socket's buffer: this does not wait in practice.
        self.stream.set_write_timeout(left(self.until)?)?;
        let mut stream = self.stream;
        Poll::Ready(stream.write(bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.stream.shutdown(Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use super::*;

    #[test]
    fn h1_a_service_that_has_gone_gets_no_traffic() {
        let gone = respond(&HealthBoard::default(), Subject::Service(1.try_into().unwrap()), "/");
        assert_eq!(gone.status(), StatusCode::SERVICE_UNAVAILABLE);
    }

    #[test]
    fn h1_what_a_client_sends_after_its_answer_is_read_before_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client = thread::spawn(move || {
            let mut stream = TcpStream::connect(address)?;
            stream.write_all(b"POST / HTTP/1.1\r\nHost: node\r\nContent-Length: 50000\r\n\r\n")?;
            let mut reply = Vec::new();
            stream.read_to_end(&mut reply)?;
            stream.write_all(&[b'x'; 50_000])?;
            stream.shutdown(Shutdown::Write)?;
            Ok::<_, io::Error>(reply)
        });
        let (stream, _) = listener.accept().unwrap();
        serve(&stream, None, |_| empty(StatusCode::OK));
        // Nothing is left but the end.
        assert_eq!(stream.peek(&mut [0]).unwrap(), 0);
        assert!(client.join().unwrap().unwrap().starts_with(b"HTTP/1.1 200 OK\r\n"));
    }
}

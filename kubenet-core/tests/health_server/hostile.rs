//! Clients that send garbage, nothing, or too much.
use super::*;

#[test]
fn h1_garbage_is_refused_and_harms_nobody() {
    let port = free_port();
    let board = Arc::new(HealthBoard::default());
    board.upsert_service(health("web", port, 1));
    let _server = server(&board).max_connections(2.try_into().unwrap()).start().unwrap();
    let tls = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(60_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(500));
    let path = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(60_000));
    let garbage: [&[u8]; 9] = [
        b"\0\0\0\0\r\n\r\n",
        b"\xff\xfe\xfd GET",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        &tls,
        long.as_bytes(),
        many.as_bytes(),
        path.as_bytes(),
    ];
    for bytes in garbage {
        let mut stream = connect((LOCALHOST, port)).unwrap();
        // The server may have closed it before all was written.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        match reply(&mut stream) {
            Ok(reply) => assert!((400..500).contains(&reply.status), "{reply:?}"),
            Err(error) => {
                assert!(
                    !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
                    "{error}"
                );
            }
        }
        assert_eq!(status(port), Some(200));
    }
}

#[test]
fn h1_endless_headers_end() {
    let port = free_port();
    let board = Arc::new(HealthBoard::default());
    board.upsert_service(health("web", port, 1));
    let _server = server(&board).start().unwrap();
    let mut stream = connect((LOCALHOST, port)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    let mut written = 0;
    let line = [b"X: ".as_slice(), &[b'y'; 1000], b"\r\n"].concat();
    while stream.write_all(&line).is_ok() {
        written += line.len();
        assert!(written < 100_000_000, "the server reads for ever");
    }
    assert_eq!(status(port), Some(200));
}

#[test]
fn h1_slow_clients_do_not_stop_answers() {
    const MAX: usize = 4;
    let port = free_port();
    let board = Arc::new(HealthBoard::default());
    board.upsert_service(health("web", port, 1));
    let _server = server(&board).max_connections(MAX.try_into().unwrap()).start().unwrap();
    let mut slow: Vec<TcpStream> = Vec::new();
    for n in 0..200 {
        let mut stream = connect((LOCALHOST, port)).unwrap();
        if n % 2 == 0 {
            // It may have been cut already.
            let _ = stream.write_all(b"GET / HTTP/1.1\r\nX-Slow: ");
        }
        slow.push(stream);
        if n % 50 == 49 {
            assert_eq!(status(port), Some(200), "beside {n} slow clients");
        }
    }
    for stream in &slow {
        stream.set_nonblocking(true).unwrap();
    }
    until("no more connections are held than allowed", || {
        slow.retain_mut(
            |stream| matches!(stream.read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock),
        );
        slow.len() <= MAX
    });
    assert_eq!(status(port), Some(200));
}

#[test]
fn h1_a_connection_ends_with_its_life_whatever_it_does() {
    let port = free_port();
    let life = Duration::from_millis(200);
    let board = Arc::new(HealthBoard::default());
    board.upsert_service(health("web", port, 1));
    let _server = server(&board).connection_life(life).start().unwrap();
    let began = Instant::now();
    let mut idle = connect((LOCALHOST, port)).unwrap();
    let mut trickling = connect((LOCALHOST, port)).unwrap();
    trickling.write_all(b"GET / HTTP/1.1\r\nX: ").unwrap();
    until("a client that trickles is cut", || trickling.write_all(b"x").is_err());
    assert!(matches!(idle.read(&mut [0]), Ok(0)));
    assert!(began.elapsed() >= life);
    assert_eq!(status(port), Some(200));
}

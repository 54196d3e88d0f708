//! What is asked, and what is answered.
use super::*;

#[test]
fn h1_the_answer_switches_as_endpoints_come_and_go() {
    let port = free_port();
    let board = Arc::new(HealthBoard::new(Duration::ZERO));
    board.upsert_service(health("web", port, 0));
    let _server = server(&board).start().unwrap();
    for (endpoints, expected) in [(0, 503), (2, 200), (0, 503), (1, 200)] {
        board.upsert_service(health("web", port, endpoints));
        let reply = get((LOCALHOST, port), "/").unwrap();
        assert_eq!(reply.status, expected);
        assert_eq!(
            reply.json(),
            json!({
                "service": { "namespace": "demo", "name": "web" },
                "localEndpoints": endpoints,
                "serviceProxyHealthy": true,
            }),
        );
        assert_eq!(reply.header("Content-Type"), Some("application/json"));
        assert_eq!(reply.header("X-Content-Type-Options"), Some("nosniff"));
        assert_eq!(reply.header("X-Load-Balancing-Endpoint-Weight"), Some(&*endpoints.to_string()));
    }
    // The proxy counts, the node does not.
    board.set_node(NodeEligibility::BeingDeleted);
    assert_eq!(status(port), Some(200));
    board.update_queued(IpFamily::V4, Instant::now());
    let reply = get((LOCALHOST, port), "/").unwrap();
    assert_eq!((reply.status, &reply.json()["serviceProxyHealthy"]), (503, &json!(false)));
}

#[test]
fn h1_any_path_and_any_method() {
    let port = free_port();
    let board = Arc::new(HealthBoard::default());
    board.upsert_service(health("web", port, 1));
    let _server = server(&board).start().unwrap();
    let at = (LOCALHOST, port);
    for path in ["/", "/healthz", "/livez", "/a//b/../c?d=e&f", "/%00%ff", "*", "http://other:1/x"] {
        let body = get(at, path).unwrap_or_else(|error| panic!("{path}: {error}")).json();
        assert_eq!(body["localEndpoints"], 1, "{path}");
    }
    for method in ["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW"] {
        let reply = ask(at, format!("{method} /x HTTP/1.1\r\nHost: node\r\n\r\n")).unwrap();
        assert_eq!((reply.status, &reply.json()["localEndpoints"]), (200, &json!(1)), "{method}");
    }
    let head = ask(at, "HEAD / HTTP/1.1\r\nHost: node\r\n\r\n").unwrap();
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert_eq!(head.header("X-Load-Balancing-Endpoint-Weight"), Some("1"));
    let connect = ask(at, "CONNECT other:1 HTTP/1.1\r\nHost: other:1\r\n\r\n").unwrap();
    assert_eq!(connect.status, 200);
    // Of old clients, with no host, or on a connection that they would like to keep.
    for request in
        ["GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\nConnection: keep-alive\n\n"]
    {
        assert_eq!(ask(at, request).unwrap().status, 200, "{request:?}");
    }
}

#[test]
fn h1_clients_that_owe_the_rest_of_their_request_are_answered() {
    let port = free_port();
    let board = Arc::new(HealthBoard::default());
    board.upsert_service(health("web", port, 1));
    let _server = server(&board).start().unwrap();
    for headers in [
        "Content-Length: 1000000\r\n",
        "Content-Length: 10\r\nExpect: 100-continue\r\n",
        "Transfer-Encoding: chunked\r\n",
    ] {
        let reply =
            ask((LOCALHOST, port), format!("POST / HTTP/1.1\r\nHost: node\r\n{headers}\r\n")).unwrap();
        assert_eq!((reply.status, &reply.json()["localEndpoints"]), (200, &json!(1)), "{headers}");
    }
    // The answer arrives though more was sent than was read.
    let mut request = b"POST / HTTP/1.1\r\nHost: node\r\nContent-Length: 50000\r\n\r\n".to_vec();
    request.resize(request.len() + 50_000, b'x');
    assert_eq!(ask((LOCALHOST, port), request).unwrap().status, 200);
    // A client that ends its half first.
    let mut stream = connect((LOCALHOST, port)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: node\r\n\r\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(reply(&mut stream).unwrap().status, 200);
    // One that sends it in pieces.
    let mut stream = connect((LOCALHOST, port)).unwrap();
    stream.set_nodelay(true).unwrap();
    for byte in b"GET / HTTP/1.1\r\nHost: node\r\n\r\n" {
        stream.write_all(&[*byte]).unwrap();
    }
    assert_eq!(reply(&mut stream).unwrap().status, 200);
}

#[test]
fn h2_healthz_and_livez_over_http() {
    let board = Arc::new(HealthBoard::new(Duration::ZERO));
    let server = server(&board).healthz((LOCALHOST, 0).into()).start().unwrap();
    let at = server.healthz_address().unwrap();
    let healthz = get(at, "/healthz?verbose").unwrap();
    assert_eq!(healthz.status, 200);
    assert_eq!(healthz.header("Content-Type"), Some("application/json"));
    let body = healthz.json();
    assert_eq!((&body["healthy"], &body["nodeEligible"]), (&json!(true), &json!(true)));
    assert_eq!(body["lastUpdated"], body["currentTime"]);
    for path in ["/", "/healthz/", "/livez/x", "/readyz", "/metrics", "*"] {
        assert_eq!(get(at, path).unwrap().status, 404, "{path}");
    }
    board.set_node(NodeEligibility::Tainted);
    let reply = get(at, "/healthz").unwrap();
    assert_eq!((reply.status, &reply.json()["nodeEligible"]), (503, &json!(false)));
    assert_eq!(get(at, "/livez").unwrap().status, 200);
    board.update_queued(IpFamily::V6, Instant::now());
    let reply = get(at, "/livez").unwrap();
    assert_eq!((reply.status, &reply.json()["status"]["IPv6"]["healthy"]), (503, &json!(false)));
    let head = ask(at, "HEAD /healthz HTTP/1.1\r\nHost: node\r\n\r\n").unwrap();
    assert_eq!((head.status, head.body.as_str()), (503, ""));
}

#[test]
fn h2_answers_about_the_proxy_are_told() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&told);
    let board = Arc::new(HealthBoard::default());
    let port = free_port();
    board.upsert_service(health("web", port, 1));
    let server = server(&board)
        .healthz((LOCALHOST, 0).into())
        .on_answer(move |path, status| seen.lock().push((path, status)))
        .start()
        .unwrap();
    let address = server.healthz_address().unwrap();
    board.set_node(NodeEligibility::Tainted);
    for path in ["/healthz", "/livez", "/other", "/healthz/"] {
        get(address, path).unwrap();
    }
    assert_eq!(status(port), Some(200));
    drop(server);
    assert_eq!(*told.lock(), [("/healthz", 503), ("/livez", 200)]);
}

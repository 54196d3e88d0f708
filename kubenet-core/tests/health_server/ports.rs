//! Which ports are open, when, and what is said of those that cannot be.
use super::*;

#[test]
fn h1_ports_open_and_close_with_their_services() {
    let [a, b, c] = [free_port(), free_port(), free_port()];
    let board = Arc::new(HealthBoard::default());
    board.upsert_service(health("early", a, 1));
    let server = server(&board).start().unwrap();
    // What was there at the start is open when it has started.
    assert_eq!(status(a), Some(200));
    board.upsert_service(health("late", b, 1));
    until("a new Service's port opens", || status(b) == Some(200));
    board.upsert_service(health("late", c, 1));
    until("a changed port closes", || is_refused(b));
    until("and another opens", || status(c) == Some(200));
    board.remove_service(&name("early"));
    until("the port of a removed Service closes", || is_refused(a));
    assert_eq!(status(c), Some(200));
    assert_eq!(server.listening(), [(LOCALHOST, c).into()]);
    board.set_services([]);
    until("all close", || server.listening().is_empty());
    assert!(is_refused(c));
    assert!(server.problems().is_empty());
}

#[test]
fn h1_a_busy_port_is_reported_by_name_and_taken_when_free() {
    let [busy, free] = [free_port(), free_port()];
    let occupant = TcpListener::bind((LOCALHOST, busy)).unwrap();
    let board = Arc::new(HealthBoard::default());
    board.set_services([health("busy", busy, 1), health("free", free, 1)]);
    let reports = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&reports);
    let server = server(&board)
        .retry_interval(Duration::from_millis(10))
        .on_problem(move |problem| sink.lock().push(problem.to_string()))
        .start()
        .unwrap();
    assert_eq!(status(free), Some(200));
    let problems = server.problems();
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].service, Some(name("busy")));
    assert_eq!(problems[0].address, (LOCALHOST, busy).into());
    assert_eq!(problems[0].error.kind(), io::ErrorKind::AddrInUse);
    let message = format!("health check port of Service demo/busy: cannot listen on 127.0.0.1:{busy}: ");
    assert!(problems[0].to_string().starts_with(&message), "{}", problems[0]);
    drop(occupant);
    until("the port is taken", || status(busy) == Some(200));
    until("the problem is over", || server.problems().is_empty());
    // Told once, however often it was tried.
    assert_eq!(*reports.lock(), [problems[0].to_string()]);
}

#[test]
fn h1_the_later_of_two_services_with_one_port_is_reported() {
    let port = free_port();
    let board = Arc::new(HealthBoard::default());
    board.upsert_service(health("first", port, 1));
    board.upsert_service(health("second", port, 0));
    let server = server(&board).start().unwrap();
    assert_eq!(get((LOCALHOST, port), "/").unwrap().json()["service"]["name"], "first");
    let problems = server.problems();
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].service, Some(name("second")));
    assert!(problems[0].to_string().contains("Service demo/first"), "{}", problems[0]);
    board.remove_service(&name("first"));
    until("the problem is over", || server.problems().is_empty());
    assert_eq!(get((LOCALHOST, port), "/").unwrap().json()["service"]["name"], "second");
}

#[test]
fn h1_all_addresses_of_both_families_by_default() {
    let port = free_port();
    let board = Arc::new(HealthBoard::default());
    board.upsert_service(health("web", port, 1));
    let server = HealthServer::builder(Arc::clone(&board)).start().unwrap();
    assert_eq!(server.listening().len(), 1);
    assert_eq!(status(port), Some(200));
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
        assert_eq!(get((Ipv6Addr::LOCALHOST, port), "/").unwrap().status, 200);
    }
}

#[test]
fn h1_listens_on_the_addresses_given_as_they_change() {
    let port = free_port();
    let other = IpAddr::from([127, 0, 0, 2]);
    let board = Arc::new(HealthBoard::default());
    board.upsert_service(health("web", port, 1));
    let server = server(&board).start().unwrap();
    assert!(connect((other, port)).is_err());
    server.set_addresses([LOCALHOST, other]);
    until("the new address answers", || get((other, port), "/").is_ok());
    assert_eq!(status(port), Some(200));
    server.set_addresses([other]);
    until("the old one does not", || is_refused(port));
    // Both wildcards are two listeners, one of each family.
    server.set_addresses([Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]);
    until("all answer", || status(port) == Some(200));
    assert!(server.problems().iter().all(|problem| problem.address.is_ipv6()));
    let has_ipv6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    assert_eq!(server.problems().is_empty(), has_ipv6);
}

#[test]
fn h1_dropping_the_server_closes_all_at_once() {
    let ports: Vec<u16> = (0..50).map(|_| free_port()).collect();
    let board = Arc::new(HealthBoard::default());
    board.set_services(ports.iter().map(|port| health(&format!("web-{port}"), *port, 1)));
    let server = server(&board).healthz((LOCALHOST, 0).into()).start().unwrap();
    assert_eq!(server.listening().len(), ports.len());
    let mut idle = connect((LOCALHOST, ports[0])).unwrap();
    let mut half = connect(server.healthz_address().unwrap()).unwrap();
    half.write_all(b"GET /healthz HT").unwrap();
    // Both are being served when this one has been answered.
    assert_eq!(status(ports[1]), Some(200));
    let began = Instant::now();
    drop(server);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    for port in ports {
        assert!(is_refused(port));
        TcpListener::bind((LOCALHOST, port)).unwrap();
    }
    for stream in [&mut idle, &mut half] {
        match stream.read(&mut [0]) {
            Ok(read) => assert_eq!(read, 0),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
    }
    // No thread holds the board any more.
    assert_eq!(Arc::strong_count(&board), 1);
}

#[test]
fn h2_a_busy_healthz_port_does_not_stop_the_services() {
    let port = free_port();
    let occupant = TcpListener::bind((LOCALHOST, 0)).unwrap();
    let board = Arc::new(HealthBoard::default());
    board.upsert_service(health("web", port, 1));
    let server = server(&board)
        .healthz(occupant.local_addr().unwrap())
        .retry_interval(Duration::from_millis(10))
        .start()
        .unwrap();
    assert_eq!(status(port), Some(200));
    assert_eq!(server.healthz_address(), None);
    assert_eq!(server.problems().len(), 1);
    assert_eq!(server.problems()[0].service, None);
    drop(occupant);
    until("it is taken", || server.healthz_address().is_some());
}

#[test]
fn h1_needs_no_executor_and_minds_none() {
    let run = || {
        let port = free_port();
        let board = Arc::new(HealthBoard::default());
        board.upsert_service(health("web", port, 1));
        let server = server(&board).start().unwrap();
        assert_eq!(status(port), Some(200));
        drop(server);
        assert!(is_refused(port));
    };
    run();
    futures::executor::block_on(async { run() });
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async { run() });
    smol::block_on(async { run() });
}

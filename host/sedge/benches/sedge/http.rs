//! Requests over HTTP, each answered after its commit, beside a bare axum server that appends the body to a file and syncs once for
//! all requests at hand.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::routing::post;
use tokio::sync::{mpsc, oneshot};

use crate::Size;
use crate::durable::reading;
use crate::harness::daemon::{Daemon, Setup};
use crate::harness::guest::guest;
use crate::harness::mosquitto::{Mosquitto, free_port};
use crate::report::{Goal, Report, percentile};

/// Connections, each with one request under way: as many as the board takes by default, less some.
const CONNECTIONS: usize = 48;
/// Requests of a run, over those of a run of messages.
const PART: usize = 10;

pub(crate) fn measure(report: &mut Report, size: &Size) -> io::Result<()> {
    let each = size.messages / PART / CONNECTIONS;
    let (mut ratios, mut rates, mut bare_rates) = (Vec::new(), Vec::new(), Vec::new());
    let (mut latencies, mut bare_latencies) = (Vec::new(), Vec::new());
    for round in 0..size.rounds {
        eprintln!("requests over HTTP, round {} of {}", round + 1, size.rounds);
        let (bare_rate, mut bare) = run_bare(each)?;
        let (rate, mut durable) = run_daemon(each)?;
        ratios.push(rate / bare_rate);
        rates.push(rate);
        bare_rates.push(bare_rate);
        latencies.append(&mut durable);
        bare_latencies.append(&mut bare);
    }
    report.add_median("http_ratio", ratios, Goal::None, "rate of requests with commit over the bare server's");
    report.add_median("http_per_s", rates, Goal::None, "requests/s, a function with state, 200 bytes, 48 clients");
    report.add_median("http_bare_per_s", bare_rates, Goal::None, "bare axum server, one sync for all at hand");
    for (key, values, percent) in [
        ("http_p50_ms", &latencies, 50.0),
        ("http_p99_ms", &latencies, 99.0),
        ("http_bare_p50_ms", &bare_latencies, 50.0),
        ("http_bare_p99_ms", &bare_latencies, 99.0),
    ] {
        report.add(key, percentile(values, percent), Goal::None, "request to answer, the same");
    }
    Ok(())
}

fn run_daemon(each: usize) -> io::Result<(f64, Vec<f64>)> {
    let (broker, port) = (Mosquitto::start(), free_port());
    let setup = Setup::new(broker.url()).function(&guest("request"));
    let _daemon = Daemon::start(&setup.set("http_trigger", format!("listen = \"127.0.0.1:{port}\"")));
    load((Ipv4Addr::LOCALHOST, port).into(), each)
}

fn run_bare(each: usize) -> io::Result<(f64, Vec<f64>)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let addr = listener.local_addr()?;
    let (stop, stopped) = oneshot::channel::<()>();
    let server = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("start tokio");
        runtime.block_on(async {
            tokio::select! {
                _ = stopped => {}
                () = serve_bare(listener) => {}
            }
        });
    });
    let result = load(addr, each);
    drop(stop);
    server.join().expect("the server does not panic");
    result
}

type Append = (bytes::Bytes, oneshot::Sender<()>);

async fn serve_bare(listener: TcpListener) {
    // As many as there are connections.
    let (sender, mut appends) = mpsc::channel::<Append>(CONNECTIONS);
    let file = tempfile::tempfile().expect("make a file");
    std::thread::spawn(move || {
        let mut at = 0;
        while let Some(first) = appends.blocking_recv() {
            let mut batch = vec![first];
            while let Ok(next) = appends.try_recv() {
                batch.push(next);
            }
            at += append(&file, at, &batch).expect("write the file");
            for (_, answer) in batch {
                let _ = answer.send(());
            }
        }
    });
    let router = axum::Router::new().route("/in/{device}", post(take)).with_state(sender);
    let listener = tokio::net::TcpListener::from_std(listener).expect("use the listener");
    axum::serve(listener, router).await.expect("serve");
}

fn append(file: &File, at: u64, batch: &[Append]) -> io::Result<u64> {
    let bytes: Vec<u8> = batch.iter().flat_map(|(body, _)| body.to_vec()).collect();
    file.write_all_at(&bytes, at)?;
    file.sync_data()?;
    Ok(bytes.len() as u64)
}

async fn take(State(sender): State<mpsc::Sender<Append>>, body: bytes::Bytes) -> &'static str {
    let (answer, answered) = oneshot::channel();
    sender.send((body, answer)).await.expect("the writer runs");
    answered.await.expect("the writer answers");
    "ok"
}

/// Returns requests per second, and the latency of each in milliseconds.
fn load(addr: SocketAddr, each: usize) -> io::Result<(f64, Vec<f64>)> {
    let begun = Instant::now();
    let clients: Vec<JoinHandle<io::Result<Vec<f64>>>> =
        (0..CONNECTIONS).map(|client| std::thread::spawn(move || call(addr, client, each))).collect();
    let mut latencies = Vec::new();
    for client in clients {
        latencies.append(&mut client.join().expect("a client does not panic")?);
    }
    Ok((latencies.len() as f64 / begun.elapsed().as_secs_f64(), latencies))
}

fn call(addr: SocketAddr, client: usize, count: usize) -> io::Result<Vec<f64>> {
    let stream = TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut reader = BufReader::new(stream);
    let mut latencies = Vec::with_capacity(count);
    for index in 0..count {
        let body = reading(index);
        let length = body.len();
        let request = format!("POST /in/c{client} HTTP/1.1\r\nhost: board\r\ncontent-length: {length}\r\n\r\n{body}");
        let sent = Instant::now();
        reader.get_mut().write_all(request.as_bytes())?;
        read_answer(&mut reader)?;
        latencies.push(sent.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(latencies)
}

fn read_answer(reader: &mut BufReader<TcpStream>) -> io::Result<()> {
    let (mut line, mut length, mut first) = (String::new(), 0, true);
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        assert!(!std::mem::take(&mut first) || line.starts_with("HTTP/1.1 200"), "{line}");
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.trim().parse().expect("a length");
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)
}

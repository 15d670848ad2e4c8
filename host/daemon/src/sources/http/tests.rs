//! The server against raw bytes, with an event loop that answers at once, or not at all.

#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Instant;

use super::*;
use sedge_core::config::Config;

const TIMES: Times = Times { step: Duration::from_millis(300), answer: Duration::from_millis(600) };
const PATIENCE: Duration = Duration::from_secs(30);

/// A server whose requests are answered by a thread.
struct Answered {
    addr: SocketAddr,
    stop: Arc<AtomicBool>,
    seen: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

/// `lines`: of `[http_trigger]`. `answer`: `None` leaves the request open.
fn serve(lines: &str, answer: impl Fn(&Request) -> Option<Response> + Send + 'static) -> Answered {
    let folder = tempfile::tempdir().unwrap();
    for (name, secret) in [("token", "s3cret\n"), ("other", "0ther\n"), ("github", "It's a Secret to Everybody\n")] {
        std::fs::write(folder.path().join(name), secret).unwrap();
    }
    let text = format!("[http_trigger]\nlisten = \"127.0.0.1:0\"\n{lines}");
    let (config, problems) = Config::parse(&text, &folder.path().join("sedge.toml"));
    assert!(!problems.has_errors(), "{problems}");
    let mut trigger = HttpTrigger::spawn_within(TIMES, &config.http_trigger, &Metrics::default()).unwrap().unwrap();
    let addr = trigger.addr();
    let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (stops, counts) = (Arc::clone(&stop), Arc::clone(&seen));
    let thread = std::thread::spawn(move || {
        while !stops.load(Relaxed) {
            let Some(request) = trigger.try_receive() else {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            counts.fetch_add(1, Relaxed);
            if let Some(response) = answer(&request) {
                trigger.respond(request.id, response);
            }
        }
    });
    Answered { addr, stop, seen, thread: Some(thread), _folder: folder }
}

/// Answers with what came.
fn echo(request: &Request) -> Option<Response> {
    let text = format!("{} {} {:?} {:?}", request.method.as_str(), request.path.topic(), request.query, request.body);
    Some(Response::text(200, text))
}

impl Answered {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addr).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends bytes and reads until the server closes the connection.
    fn send(&self, bytes: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(bytes.as_bytes()).unwrap();
        ended(&mut stream)
    }

    /// The status of a request with these headers.
    fn status(&self, target: &str, headers: &str, body: &str) -> (u16, String) {
        let length = body.len();
        let head = format!(
            "POST {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
        );
        let answer = self.send(&format!("{head}{body}"));
        (status(&answer), answer)
    }

    fn seen(&self) -> usize {
        self.seen.load(Relaxed)
    }
}

impl Drop for Answered {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn ended(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset is an end as well.
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    }
    String::from_utf8_lossy(&answer).into_owned()
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no answer: {answer:?}"))
}

#[test]
fn a_request_comes_to_the_loop_and_its_answer_to_the_client() {
    let server = serve("", echo);
    let (status, answer) = server.status("/a%20b/c?x=1", "", "hello");
    assert_eq!(status, 200);
    assert!(answer.ends_with("POST $http/a b/c [(\"x\", \"1\")] b\"hello\"\n"), "{answer}");
    let answer = server.send("GET /a HTTP/1.0\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.0 200") && answer.ends_with("GET $http/a [] b\"\"\n"), "{answer}");
}

#[test]
fn of_the_headers_of_a_trace_each_counts() {
    let server = serve("", |request| {
        let is_of_test = |name: &str| ["traceparent", "tracestate", "x-a"].contains(&name);
        let all = request.headers.iter().filter(|(name, _)| is_of_test(name));
        Some(Response::text(200, all.map(|(name, value)| format!("{name}={value};")).collect::<String>()))
    });
    let headers = "traceparent: 1\r\ntracestate: a=1\r\nx-a: one\r\ntraceparent: 2\r\nTraceState: b=2\r\nx-a: two\r\n";
    let (_, answer) = server.status("/a", headers, "");
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let mut lines: Vec<_> = body.trim().split(';').collect();
    lines.sort();
    assert_eq!(lines, ["", "traceparent=1,2", "tracestate=a=1,b=2", "x-a=one"]);
}

#[test]
fn a_connection_carries_requests_one_after_the_other_also_when_they_come_at_once() {
    let server = serve("", echo);
    let pair = "POST /1 HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nonePOST /2 HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\nconnection: close\r\n\r\ntwo";
    let answer = server.send(pair);
    let (one, two) = (answer.find("b\"one\"").unwrap(), answer.find("b\"two\"").unwrap());
    assert!(one < two && answer.matches("HTTP/1.1 200").count() == 2, "{answer}");
}

#[test]
fn answers_carry_what_the_client_needs() {
    let server = serve("", |request| {
        Some(match request.path.segments()[0].as_str() {
            "letter" => Response {
                dead_letter: Some(sedge_core::store::DeadLetterId(7)),
                ..Response::text(500, "trap: unreachable")
            },
            "later" => Response::unavailable("busy"),
            "other" => Response { allow: Some("GET".into()), ..Response::text(405, "this path takes GET") },
            _ => Response::DONE,
        })
    });
    let (status, answer) = server.status("/letter", "", "");
    assert_eq!(status, 500);
    assert!(
        answer.contains("sedge-dead-letter: 7\r\n") && answer.ends_with("unreachable\ndead letter 7\n"),
        "{answer}"
    );
    assert!(server.status("/later", "", "").1.contains("retry-after: 1\r\n"));
    assert!(server.status("/other", "", "").1.contains("allow: GET\r\n"));
    let (status, answer) = server.status("/", "", "");
    assert!(status == 204 && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[test]
fn slow_and_silent_clients_lose_their_connection_and_cost_others_nothing() {
    let server = serve("max_requests = 4", echo);
    let halves =
        ["", "POST /a HT", "POST /a HTTP/1.1\r\nhost:", "POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf"];
    // More than there are connections.
    let slow: Vec<TcpStream> = (0..80)
        .map(|n| {
            let mut stream = server.connect();
            let _ = stream.write_all(halves[n % 3].as_bytes());
            stream
        })
        .collect();
    assert_eq!(server.status("/a", "", "x").0, 200, "behind them all");
    slow.into_iter().for_each(|mut stream| drop(ended(&mut stream)));
    assert_eq!(status(&server.send(halves[3])), 408, "a body that never comes");
    assert_eq!(server.seen(), 1, "nothing of them came to the loop");
}

#[test]
fn a_large_head_or_body_is_refused_by_its_status() {
    let server = serve("max_body_bytes = 1000", echo);
    let (long, many) = ("x".repeat(20_000), "a: b\r\n".repeat(100));
    assert_eq!(status(&server.send(&format!("POST /a HTTP/1.1\r\nhost: x\r\nlong: {long}\r\n\r\n"))), 431);
    assert_eq!(status(&server.send(&format!("POST /a HTTP/1.1\r\nhost: x\r\n{many}\r\n"))), 431);
    assert_eq!(server.status("/a", "", &"x".repeat(1000)).0, 200);
    assert_eq!(server.status("/a", "", &"x".repeat(1001)).0, 413);
    assert_eq!(server.status(&format!("/{}", "x".repeat(5000)), "", "").0, 400);
    let chunked = |body: &str| {
        let head = "POST /a HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
        status(&server.send(&format!("{head}{:x}\r\n{body}\r\n0\r\n\r\n", body.len())))
    };
    assert_eq!((chunked("hello"), chunked(&"x".repeat(1001))), (200, 413));
    assert_eq!(server.seen(), 2);
}

#[test]
fn a_wrong_length_is_no_request() {
    let server = serve("", echo);
    let mut short = server.connect();
    short.write_all(b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf").unwrap();
    short.shutdown(std::net::Shutdown::Write).unwrap();
    let answer = ended(&mut short);
    assert!(answer.is_empty() || status(&answer) == 400, "{answer}");
    for head in [
        "content-length: 1\r\ntransfer-encoding: chunked",
        "content-length: x",
        "content-length: 1\r\ncontent-length: 2",
    ] {
        let answer = server.send(&format!("POST /a HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n1\r\nx\r\n0\r\n\r\n"));
        assert!(answer.is_empty() || status(&answer) >= 400 || head.contains("chunked"), "{head}: {answer}");
    }
    assert_eq!(status(&server.send("BREW /a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")), 405);
    assert_eq!(status(&server.send("POST /%zz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")), 400);
    assert_eq!(status(&server.send("\x16\x03\x01 not HTTP\r\n\r\n")), 400);
    assert!(server.seen() <= 1, "at most the chunked one");
}

const TOKENS: &str = "[http_trigger.tokens.meters]\nfile = \"token\"\npaths = [\"/in/*\"]\nburst = 1_000\n\
    [http_trigger.tokens.plug]\nfile = \"other\"\nin_query = true\nrequests_per_sec = 1\nburst = 2";

#[test]
fn a_token_is_required_and_is_for_its_paths() {
    let server = serve(TOKENS, echo);
    let (status, answer) = server.status("/in/a", "", "x");
    assert!(status == 401 && answer.contains("www-authenticate: Bearer\r\n"), "{answer}");
    assert_eq!(server.status("/in/a", "authorization: Bearer s3cre\r\n", "x").0, 401);
    assert_eq!(server.status("/in/a?token=s3cret", "", "x").0, 401, "this one not in the query");
    assert_eq!(server.status("/in/a", "authorization: Bearer s3cret\r\n", "x").0, 200);
    assert_eq!(server.status("/in/a", "authorization: Basic eDpzM2NyZXQ=\r\n", "x").0, 200, "x:s3cret");
    assert_eq!(server.status("/out", "authorization: Bearer s3cret\r\n", "x").0, 403);
    assert_eq!(server.status("/%69n2/a", "authorization: Bearer s3cret\r\n", "x").0, 403);
    assert_eq!(server.seen(), 2);
}

#[test]
fn a_token_has_a_rate_and_may_stand_in_the_query() {
    let server = serve(TOKENS, echo);
    let (status, answer) = server.status("/any?token=0ther&a=1", "", "x");
    assert!(status == 200 && answer.contains("[(\"a\", \"1\")]"), "the function does not see it: {answer}");
    assert_eq!(server.status("/any?token=0ther", "", "x").0, 200);
    let (status, answer) = server.status("/any?token=0ther", "", "x");
    assert!(status == 429 && answer.contains("retry-after: 1\r\n"), "{answer}");
    assert_eq!(server.status("/in/a", "authorization: Bearer s3cret\r\n", "x").0, 200, "each has its own");
}

#[test]
fn a_signed_path_takes_the_signature_and_no_token() {
    let lines = format!("{TOKENS}\n[http_trigger.signatures.github]\nfile = \"github\"\npaths = [\"/github\"]");
    let server = serve(&lines, echo);
    let signature = "x-hub-signature-256: sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17\r\n";
    assert_eq!(server.status("/github", signature, "Hello, World!").0, 200);
    assert_eq!(server.status("/github", signature, "Hello, World?").0, 401);
    assert_eq!(server.status("/github", "authorization: Bearer 0ther\r\n", "Hello, World!").0, 401);
    assert_eq!(server.status("/other", signature, "Hello, World!").0, 401);
    assert_eq!(server.seen(), 1);
}

#[test]
fn more_requests_than_may_be_under_way_come_again() {
    let server = serve("max_requests = 1", |_| None);
    let mut first = server.connect();
    first.write_all(b"POST /1 HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
    let begun = Instant::now();
    while server.seen() == 0 {
        assert!(begun.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
    let (status_of_second, answer) = server.status("/2", "", "");
    assert!(status_of_second == 503 && answer.contains("retry-after: 1"), "{answer}");
    assert_eq!(status(&ended(&mut first)), 504, "without an answer in time");
    assert_eq!(server.seen(), 1);
}

#[test]
fn a_client_that_leaves_keeps_no_place() {
    let server = serve("max_requests = 1", |request| (request.path.segments()[0] != "1").then_some(Response::DONE));
    let mut first = server.connect();
    first.write_all(b"POST /1 HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").unwrap();
    let begun = Instant::now();
    while server.seen() == 0 {
        assert!(begun.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
    drop(first);
    while server.status("/2", "", "").0 != 204 {
        assert!(begun.elapsed() < PATIENCE);
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sinks/testdata").join(name)
}

#[test]
fn with_a_certificate_requests_are_encrypted() {
    let server =
        serve(&format!("cert_file = {:?}\nkey_file = {:?}", fixture("server.pem"), fixture("server.key")), echo);
    let mut roots = rustls::RootCertStore::empty();
    let ca = std::fs::read(fixture("ca.pem")).unwrap();
    let ca = <rustls::pki_types::CertificateDer<'_> as rustls::pki_types::pem::PemObject>::from_pem_slice(&ca).unwrap();
    roots.add(ca).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
    // A handshake that never comes is ended, and others do not wait for it.
    let silent = server.connect();
    let connection = rustls::ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
    let mut stream = rustls::StreamOwned::new(connection, server.connect());
    stream.write_all(b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi").unwrap();
    let mut answer = String::new();
    // The end of the connection need not be announced.
    let _ = stream.read_to_string(&mut answer);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("b\"hi\"\n"), "{answer}");
    assert_eq!(ended(&mut { silent }), "");
}

#[test]
fn what_cannot_be_started_names_the_file_or_the_key() {
    let start = |trigger: config::HttpTrigger| {
        HttpTrigger::spawn(&trigger, &Metrics::default()).map(|_| ()).unwrap_err().to_string()
    };
    let listen = Some(([127, 0, 0, 1], 0).into());
    let tls = |cert: &str, key: &str| {
        let (cert_file, key_file) = (Some(fixture(cert)), Some(fixture(key)));
        start(config::HttpTrigger { listen, cert_file, key_file, ..config::HttpTrigger::default() })
    };
    assert!(tls("server.pem", "client.key").contains("does not go with the key"));
    assert!(tls("server.key", "server.key").contains("server.key: no certificate in PEM"));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = Some(taken.local_addr().unwrap());
    let error = start(config::HttpTrigger { listen, ..config::HttpTrigger::default() });
    assert!(error.contains("http_trigger.listen"), "{error}");
    assert!(HttpTrigger::spawn(&config::HttpTrigger::default(), &Metrics::default()).unwrap().is_none(), "off");
}

//! Against a real server on a loopback port.

#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use sedge_core::stream::SinkId;
use tokio::sync::mpsc;

use super::*;

/// One request as the server saw it.
#[derive(Debug)]
struct Seen {
    /// The number of its connection, from 1.
    connection: usize,
    line: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Seen {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| &**value)
    }
}

/// Answers each request with the next of `answers`, then stops listening. `None`: hangs up without an answer.
fn server(answers: Vec<Option<&'static str>>) -> (SocketAddr, Receiver<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    // More than any test sends.
    let (seen, receiver) = sync_channel(1024);
    std::thread::spawn(move || {
        let mut answers = answers.into_iter();
        for connection in 1.. {
            if answers.len() == 0 {
                return;
            }
            let (stream, _) = listener.accept().unwrap();
            converse(stream, connection, &mut answers, &seen);
        }
    });
    (addr, receiver)
}

fn converse<S: Read + Write>(
    stream: S,
    connection: usize,
    answers: &mut dyn ExactSizeIterator<Item = Option<&'static str>>,
    seen: &SyncSender<Seen>,
) {
    let mut stream = BufReader::new(stream);
    while answers.len() > 0 {
        let mut line = String::new();
        // A client that does not want the connection any more may close it without ceremony.
        if stream.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let mut headers = Vec::new();
        loop {
            let mut header = String::new();
            stream.read_line(&mut header).unwrap();
            let Some((name, value)) = header.trim_end().split_once(": ") else { break };
            headers.push((name.to_lowercase(), value.to_owned()));
        }
        let mut request = Seen { connection, line: line.trim_end().into(), headers, body: Vec::new() };
        request.body = vec![0; request.header("content-length").unwrap().parse().unwrap()];
        stream.read_exact(&mut request.body).unwrap();
        seen.send(request).unwrap();
        let Some(answer) = answers.next().unwrap() else { return };
        stream.get_mut().write_all(answer.as_bytes()).unwrap();
        stream.get_mut().flush().unwrap();
    }
}

const OK: Option<&str> = Some("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn envelope(payload: &'static str) -> Envelope {
    Envelope {
        topic: "sedge/cellar/alerts/too warm".into(),
        payload: payload.into(),
        content_type: Some("application/json".into()),
        properties: vec![
            ("specversion", "1.0".into()),
            ("id", "k3-a-42".into()),
            ("source", "sedge/Küche 1".into()),
            ("traceparent", PARENT.into()),
            ("tracestate", "a=100% \"b\"".into()),
        ],
        retain: false,
        at_ms: 0,
        clock_synced: true,
    }
}

fn config(addr: SocketAddr) -> config::Upstream {
    config::Upstream::new(format!("http://{addr}/in?site=7").parse().unwrap(), "n")
}

fn with_connection(connection: config::Connection) -> config::Upstream {
    config::Upstream { connection, ..config::Upstream::new(config::Endpoint::default(), "n") }
}

/// Posts and waits, as the forwarder does.
struct Client {
    webhook: Webhook,
    answers: mpsc::Receiver<(SinkId, PublishToken, Answer)>,
}

impl Client {
    fn new(config: &config::Upstream) -> Self {
        let (sender, answers) = mpsc::channel(4);
        let to = Answers { sink: SinkId::UPSTREAM, sender };
        Self { webhook: Webhook::spawn("upstream", config, to).unwrap(), answers }
    }

    fn post(&mut self, token: u64) -> Answer {
        let token = PublishToken(token);
        assert_eq!(self.webhook.post(token, envelope("{\"a\":1}")), Ok(()));
        let (_, answered, answer) = self.answers.blocking_recv().unwrap();
        assert_eq!(answered, token);
        answer
    }
}

fn is_retry(answer: &Answer, seconds: Option<u64>) -> bool {
    matches!(answer, Answer::Retry { after, .. } if *after == seconds.map(Duration::from_secs))
}

#[test]
fn a_record_goes_as_it_is_with_its_attributes_in_headers() {
    let (addr, seen) = server(vec![OK]);
    assert_eq!(Client::new(&config(addr)).post(1), Answer::Accepted);
    let request = seen.recv().unwrap();
    assert_eq!(request.line, "POST /in?site=7 HTTP/1.1");
    assert_eq!(request.body, b"{\"a\":1}");
    for (name, value) in [
        ("content-type", "application/json"),
        ("ce-specversion", "1.0"),
        ("ce-id", "k3-a-42"),
        ("ce-source", "sedge/K%C3%BCche%201"),
        ("ce-subject", "sedge/cellar/alerts/too%20warm"),
        ("ce-traceparent", PARENT),
        // As it is: receivers of traces know no percent-encoding.
        ("traceparent", PARENT),
        ("tracestate", "a=100% \"b\""),
        ("user-agent", concat!("sedge/", env!("CARGO_PKG_VERSION"))),
    ] {
        assert_eq!(request.header(name), Some(value), "{name}");
    }
    assert_eq!(request.header("authorization"), None);
}

#[test]
fn one_connection_serves_many_records() {
    let (addr, seen) = server(vec![OK; 5]);
    let mut client = Client::new(&config(addr));
    for token in 0..5 {
        assert_eq!(client.post(token), Answer::Accepted);
    }
    assert!(seen.iter().take(5).all(|request| request.connection == 1));
}

#[test]
fn what_the_answer_means() {
    let answers = [
        ("HTTP/1.1 204 No Content\r\n\r\n", None),
        ("HTTP/1.1 422 Unprocessable Entity\r\ncontent-length: 0\r\n\r\n", None),
        ("HTTP/1.1 429 Too Many Requests\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n", Some(Some(7))),
        ("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", Some(None)),
        ("HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n", Some(None)),
        ("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n", Some(None)),
    ];
    let (addr, _seen) = server(answers.iter().map(|(answer, _)| Some(*answer)).collect());
    let mut client = Client::new(&config(addr));
    let expected = [Answer::Accepted, Answer::Refused("http-422".into())];
    for (token, (text, again)) in answers.into_iter().enumerate() {
        let answer = client.post(token as u64);
        match again {
            Some(seconds) => assert!(is_retry(&answer, seconds), "{text}: {answer:?}"),
            None => assert_eq!(answer, expected[token]),
        }
    }
}

#[test]
fn every_status_is_decided() {
    let status = |code| evaluate(StatusCode::from_u16(code).unwrap(), &HeaderMap::new());
    for code in [200, 201, 202, 299] {
        assert_eq!(status(code), Answer::Accepted, "{code}");
    }
    for code in [301, 308, 401, 403, 404, 407, 408, 425, 429, 502, 503, 504] {
        assert!(is_retry(&status(code), None), "{code}");
    }
    assert_eq!(status(500), Answer::Declined("http-500".into()));
    for code in [400, 405, 409, 410, 413, 415, 422] {
        assert_eq!(status(code), Answer::Refused(format!("http-{code}").into()));
    }
}

#[test]
fn a_receiver_that_hangs_up_or_is_away_gets_the_record_again() {
    let (addr, seen) = server(vec![None, OK]);
    let mut client = Client::new(&config(addr));
    assert!(is_retry(&client.post(1), None));
    assert_eq!(client.post(2), Answer::Accepted);
    assert_eq!(seen.iter().take(2).last().unwrap().connection, 2);
    // The server is gone now.
    assert!(is_retry(&client.post(3), None));
}

#[test]
fn a_receiver_that_never_answers_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let config = config::Upstream { timeout_secs: 1.try_into().unwrap(), ..config(listener.local_addr().unwrap()) };
    let answer = Client::new(&config).post(1);
    assert!(matches!(&answer, Answer::Retry { reason, .. } if reason.contains("timeout")), "{answer:?}");
}

#[test]
fn the_authorization_is_read_for_each_call() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let (addr, seen) = server(vec![OK, OK]);
    let config = config::Upstream { authorization_file: Some(path.clone()), ..config(addr) };
    let (sender, _answers) = mpsc::channel(4);
    let to = Answers { sink: SinkId::UPSTREAM, sender };
    let error = Webhook::spawn("upstream", &config, to).unwrap_err().to_string();
    assert!(error.contains("upstream.authorization_file") && error.contains("token"), "{error}");

    std::fs::write(&path, "Bearer one\n").unwrap();
    let mut client = Client::new(&config);
    assert_eq!(client.post(1), Answer::Accepted);
    std::fs::write(&path, "Bearer two\n").unwrap();
    assert_eq!(client.post(2), Answer::Accepted);
    std::fs::remove_file(&path).unwrap();
    assert!(is_retry(&client.post(3), None));
    let values: Vec<_> = seen.iter().map(|request| request.header("authorization").unwrap().to_owned()).collect();
    assert_eq!(values, ["Bearer one", "Bearer two"]);
}

#[test]
fn a_second_call_is_not_taken_before_the_first_is_answered() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let config = config::Upstream { timeout_secs: 1.try_into().unwrap(), ..config(listener.local_addr().unwrap()) };
    let client = Client::new(&config);
    let taken = (0..3).filter(|token| client.webhook.post(PublishToken(*token), envelope("1")).is_ok()).count();
    assert!(taken < 3, "the channel is bounded");
}

#[test]
fn wrong_settings_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty.pem");
    std::fs::write(&empty, "nothing").unwrap();
    let https = || config::Connection::new("https://localhost/".parse().unwrap(), "n");
    for (connection, words) in [
        (config::Connection { ca_file: Some(empty.clone()), ..https() }, ["upstream.ca_file", "certificate"]),
        (config::Connection { ca_file: Some("/nowhere.pem".into()), ..https() }, ["upstream.ca_file", "/nowhere.pem"]),
        (
            config::Connection { ca_file: Some(fixture("ca.pem")), cert_file: Some(empty), ..https() },
            ["upstream.cert_file", "upstream.key_file"],
        ),
        (
            config::Connection {
                ca_file: Some(fixture("ca.pem")),
                cert_file: Some(fixture("client.pem")),
                key_file: Some(fixture("server.key")),
                ..https()
            },
            ["client.pem", "cannot be used with its key"],
        ),
    ] {
        let config = with_connection(connection);
        let (sender, _answers) = mpsc::channel(1);
        let to = Answers { sink: SinkId::UPSTREAM, sender };
        let error = Webhook::spawn("upstream", &config, to).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
}

/// Made with openssl for `localhost`, valid for a hundred years. Only tests trust them.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sinks/testdata").join(name)
}

#[test]
fn tls_with_an_own_authority_and_a_client_certificate() {
    let provider = Arc::new(ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificates("ca", &fixture("ca.pem")).unwrap().remove(0)).unwrap();
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).build().unwrap();
    let server_config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            certificates("cert", &fixture("server.pem")).unwrap(),
            PrivateKeyDer::from_pem_file(fixture("server.key")).unwrap(),
        )
        .unwrap();
    let server_config = Arc::new(server_config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // More than any test sends.
    let (seen, receiver) = sync_channel(1024);
    std::thread::spawn(move || {
        for connection in 1.. {
            let (stream, _) = listener.accept().unwrap();
            let tls = rustls::ServerConnection::new(server_config.clone()).unwrap();
            converse(rustls::StreamOwned::new(tls, stream), connection, &mut vec![OK].into_iter(), &seen);
        }
    });

    let plain = config::Connection {
        ca_file: Some(fixture("ca.pem")),
        ..config::Connection::new(format!("https://localhost:{port}/").parse().unwrap(), "n")
    };
    let known = config::Connection {
        cert_file: Some(fixture("client.pem")),
        key_file: Some(fixture("client.key")),
        ..plain.clone()
    };
    assert_eq!(Client::new(&with_connection(known.clone())).post(1), Answer::Accepted);
    assert_eq!(receiver.recv().unwrap().body, b"{\"a\":1}");
    assert!(is_retry(&Client::new(&with_connection(plain)).post(2), None), "without a certificate");
    let stranger = config::Connection { ca_file: Some(fixture("client.pem")), ..known };
    assert!(is_retry(&Client::new(&with_connection(stranger)).post(3), None), "the server is signed by somebody else");
}

#[test]
fn a_date_to_come_back_is_compared_with_the_receivers_own() {
    assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
    assert_eq!(http_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
    assert_eq!(http_date("Tue, 29 Feb 2000 12:00:00 GMT"), Some(951_825_600));
    for bad in
        ["", "Sun, 06 Nov 1994", "Sunday, 06-Nov-94 08:49:37 GMT", "x, 1 anF 2000 1:1:1 GMT", "x, 1 Jan 2000 1:1 GMT"]
    {
        assert_eq!(http_date(bad).filter(|_| !bad.contains("anF")), None, "{bad}");
    }
    let after = |pairs: &[(header::HeaderName, &'static str)]| {
        retry_after(&pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect())
    };
    let date = (header::DATE, "Sun, 06 Nov 1994 08:49:37 GMT");
    assert_eq!(after(&[(header::RETRY_AFTER, "7")]), Some(Duration::from_secs(7)));
    let later = (header::RETRY_AFTER, "Sun, 06 Nov 1994 08:50:07 GMT");
    assert_eq!(after(&[date.clone(), later]), Some(Duration::from_secs(30)));
    let earlier = (header::RETRY_AFTER, "Sun, 06 Nov 1994 08:00:00 GMT");
    assert_eq!(after(&[date, earlier]), Some(Duration::ZERO));
    assert_eq!(after(&[(header::RETRY_AFTER, "soon")]), None);
    assert_eq!(after(&[]), None);
}

#[test]
fn a_body_that_never_ends_costs_its_connection_and_not_the_time_of_a_call() {
    let endless = Some("HTTP/1.1 200 OK\r\ncontent-length: 60000\r\n\r\nhere it comes");
    let (addr, seen) = server(vec![endless, endless]);
    let begin = std::time::Instant::now();
    let mut client = Client::new(&config(addr));
    assert_eq!(client.post(1), Answer::Accepted);
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert_eq!(seen.recv().unwrap().connection, 1);
}

#[test]
fn own_headers_are_sent_by_value_and_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    std::fs::write(&file, "secret\n").unwrap();
    let (addr, seen) = server(vec![OK]);
    let mut config = config(addr);
    let header = |value: Option<&str>, file: Option<&PathBuf>| config::Header {
        value: value.map(str::to_owned),
        file: file.cloned(),
    };
    config.headers.insert("X-Site".into(), header(Some("plant 3"), None));
    config.headers.insert("X-API-Key".into(), header(None, Some(&file)));
    assert_eq!(Client::new(&config).post(1), Answer::Accepted);
    let request = seen.recv().unwrap();
    assert_eq!((request.header("x-site"), request.header("x-api-key")), (Some("plant 3"), Some("secret")));
}

#[test]
fn a_format_decides_what_a_call_sends() {
    let (addr, seen) = server(vec![OK, OK, OK]);
    let with = |format| Client::new(&config::Upstream { format, ..config(addr) });
    assert_eq!(with(WebhookFormat::CloudEvents).post(1), Answer::Accepted);
    let request = seen.recv().unwrap();
    assert_eq!(request.header("content-type"), Some("application/cloudevents+json; charset=utf-8"));
    assert_eq!(request.header("ce-id"), None);
    let event: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
    assert_eq!(
        (&event["id"], &event["data"]["a"], &event["subject"]),
        (&"k3-a-42".into(), &1.into(), &"sedge/cellar/alerts/too warm".into(),)
    );
    // It is no alert: the envelope of this test has no type.
    assert_eq!(with(WebhookFormat::Alertmanager).post(2), Answer::Refused("not-an-alert".into()));
}

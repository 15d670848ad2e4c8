//! Against a stand-in that misbehaves, and against the servers themselves where they are installed.

#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Instant;

use flate2::read::GzDecoder;

use super::*;

/// One millisecond for all records.
static AT_MS: OnceLock<u64> = OnceLock::new();

fn envelope(number: u64, payload: &str) -> Envelope {
    Envelope {
        topic: "plant/oven".into(),
        payload: payload.to_owned().into(),
        content_type: Some("application/json".into()),
        properties: vec![("id", format!("k3-d1-{number}").into()), ("type", "io.sedge.data".into())],
        retain: false,
        at_ms: *AT_MS.get_or_init(sedge_sandbox::clock::now_ms),
        clock_synced: true,
    }
}

fn records(payloads: impl IntoIterator<Item = String>) -> Vec<(PublishToken, Envelope)> {
    (1..).zip(payloads).map(|(n, payload)| (PublishToken(n), envelope(n, &payload))).collect()
}

fn config(port: u16, api: InfluxApi) -> config::Influx {
    let url = format!("http://127.0.0.1:{port}").parse().unwrap();
    config::Influx {
        connection: config::Connection::new(url, "n"),
        api,
        token_file: None,
        measurement: "sedge".into(),
        batch_records: 500.try_into().unwrap(),
        gzip: true,
        timeout_secs: 10.try_into().unwrap(),
        backoff_max_secs: 10.try_into().unwrap(),
        give_up_secs: None,
    }
}

fn v1() -> InfluxApi {
    InfluxApi::V1 { database: "plant 3".into() }
}

fn writer(config: &config::Influx) -> Writer {
    Writer::new("sink.lake", "n", config, Clock::new(SinkId::UPSTREAM, &Recovered::default())).unwrap()
}

fn answers(writer: &mut Writer, records: &[(PublishToken, Envelope)]) -> Vec<Answer> {
    let answers = writer.take(records);
    assert!(answers.iter().map(|(token, _)| token).eq(records.iter().map(|(token, _)| token)));
    answers.into_iter().map(|(_, answer)| answer).collect()
}

/// One request: its first line, its value of `Authorization`, and its lines.
struct Asked {
    line: String,
    authorization: String,
    lines: Vec<String>,
}

/// Answers each request as the function says, until the test ends.
fn server(answer: impl Fn(&Asked) -> String + Send + 'static) -> (u16, Receiver<Asked>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    // More than any test sends.
    let (sender, receiver) = sync_channel(1024);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = BufReader::new(stream);
            while let Some(asked) = read(&mut stream) {
                stream.get_mut().write_all(answer(&asked).as_bytes()).unwrap();
                let _ = sender.send(asked);
            }
        }
    });
    (port, receiver)
}

fn read(stream: &mut BufReader<std::net::TcpStream>) -> Option<Asked> {
    let mut line = String::new();
    stream.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let (mut length, mut is_packed, mut authorization) = (0, false, String::new());
    loop {
        let mut header = String::new();
        stream.read_line(&mut header).unwrap();
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        match &*name.to_lowercase() {
            "content-length" => length = value.parse().unwrap(),
            "content-encoding" => is_packed = value == "gzip",
            "authorization" => authorization = value.to_owned(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    let mut text = String::new();
    match is_packed {
        true => GzDecoder::new(&body[..]).read_to_string(&mut text).unwrap(),
        false => (&body[..]).read_to_string(&mut text).unwrap(),
    };
    Some(Asked { line: line.trim_end().into(), authorization, lines: text.lines().map(str::to_owned).collect() })
}

fn reply(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n{body}", body.len())
}

const WRITTEN: &str = "HTTP/1.1 204 No Content\r\n\r\n";

#[test]
fn a_batch_is_one_request_with_the_path_and_the_login_of_its_version() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "s3cret\n").unwrap();
    for (api, path) in [
        (v1(), "POST /write?db=plant%203&precision=ns HTTP/1.1"),
        (
            InfluxApi::V2 { org: "o&o".into(), bucket: "b".into() },
            "POST /api/v2/write?org=o%26o&bucket=b&precision=ns HTTP/1.1",
        ),
    ] {
        let (port, asked) = server(|_| WRITTEN.to_owned());
        for gzip in [true, false] {
            let config = config::Influx { token_file: Some(token.clone()), gzip, ..config(port, api.clone()) };
            let all = records((0..20).map(|n| format!("{{\"t\":{n}}}")));
            assert_eq!(answers(&mut writer(&config), &all), vec![Answer::Accepted; 20]);
            let asked = asked.recv().unwrap();
            assert_eq!((&*asked.line, &*asked.authorization, asked.lines.len()), (path, "Token s3cret", 20));
            let times: std::collections::BTreeSet<&str> =
                asked.lines.iter().filter_map(|line| Some(line.rsplit_once(' ')?.1)).collect();
            assert_eq!(times.len(), 20, "records of one millisecond have times of their own");
        }
    }
}

#[test]
fn bad_lines_are_found_by_halving_and_the_others_are_written() {
    let is_bad = |line: &String| line.contains("t=13") || line.contains("t=77");
    let (port, asked) = server(move |asked| match asked.lines.iter().any(is_bad) {
        true => reply("400 Bad Request", "", "{\"error\":\"unable to parse\"}"),
        false => WRITTEN.to_owned(),
    });
    let all = records((0..100).map(|n| format!("{{\"t\":{n}}}")));
    let answers = answers(&mut writer(&config(port, v1())), &all);
    for (n, answer) in answers.iter().enumerate() {
        let expected = if [13, 77].contains(&n) { Answer::Refused("http-400".into()) } else { Answer::Accepted };
        assert_eq!(*answer, expected, "{n}");
    }
    let requests = asked.try_iter().count();
    assert!(requests <= 30, "{requests} requests for two bad lines of 100");
}

#[test]
fn a_server_that_refuses_everything_is_not_taken_for_bad_records() {
    let (port, _asked) = server(|_| reply("400 Bad Request", "", "no such parameter"));
    let answers = answers(&mut writer(&config(port, v1())), &records((0..4).map(|n| n.to_string())));
    assert_eq!(answers, vec![Answer::Declined("http-400".into()); 4]);
}

#[test]
fn what_has_no_field_is_refused_without_a_request() {
    let (port, asked) = server(|_| WRITTEN.to_owned());
    let all = records(["{}", "1", "no json"].map(str::to_owned));
    let answers = answers(&mut writer(&config(port, v1())), &all);
    let none = || Answer::Refused("no-fields".into());
    assert_eq!(answers, [none(), Answer::Accepted, none()]);
    assert_eq!(asked.recv().unwrap().lines.len(), 1);
}

#[track_caller]
fn check_later(answer: String, part: &str) {
    let (port, _asked) = server(move |_| answer.clone());
    let answers = answers(&mut writer(&config(port, v1())), &records(["1".to_owned(), "2".to_owned()]));
    for answer in answers {
        let Answer::Retry { reason, .. } = answer else { panic!("{answer:?}") };
        assert!(reason.contains(part), "{reason}");
    }
}

#[test]
fn redirects_pages_and_failures_are_one_sentence_and_lose_nothing() {
    let to = "location: https://a.example/login\r\n";
    check_later(reply("302 Found", to, ""), "redirects to https://a.example/login: write the address");
    let html = "content-type: text/html; charset=utf-8\r\n";
    check_later(reply("200 OK", html, "<!DOCTYPE html>"), "sink.lake.url is not the address of an InfluxDB");
    check_later(reply("400 Bad Request", html, "<html>"), "a page of HTML");
    check_later(reply("401 Unauthorized", "", "{\"error\":\"token\"}"), "401 Unauthorized: {\"error\":\"token\"}");
    check_later(reply("404 Not Found", "", "database not found"), "database not found");
    check_later(reply("503 Service Unavailable", "retry-after: 7\r\n", ""), "503");
}

#[test]
fn a_pause_that_the_server_asks_for_is_kept_and_no_server_is_a_pause() {
    let (port, _asked) = server(|_| reply("429 Too Many Requests", "retry-after: 7\r\n", ""));
    let one = records(["1".to_owned()]);
    let answers = answers(&mut writer(&config(port, v1())), &one);
    assert!(matches!(&answers[..], [Answer::Retry { after: Some(pause), .. }] if pause.as_secs() == 7), "{answers:?}");
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    assert!(matches!(self::answers(&mut writer(&config(closed, v1())), &one)[..], [Answer::Retry { .. }]));
}

/// A server in a folder of its own. Ends with the test.
struct Server {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

impl Server {
    /// `None`: the program is not installed.
    fn start(program: &str, arguments: impl FnOnce(&std::path::Path, u16) -> Vec<String>, ready: &str) -> Option<Self> {
        let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
        let mut command = Command::new(program);
        command.args(arguments(dir.path(), port)).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let Ok(child) = command.spawn() else {
            eprintln!("skipped: {program} is not installed");
            return None;
        };
        let server = Self { child, port, _dir: dir };
        server.until(|| server.get(ready).is_some());
        Some(server)
    }

    fn until(&self, mut is_so: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !is_so() {
            assert!(begun.elapsed() < Duration::from_secs(60), "the server of port {} does not get there", self.port);
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn get(&self, path: &str) -> Option<String> {
        let mut answer = ureq::get(format!("http://127.0.0.1:{}{path}", self.port)).call().ok()?;
        answer.body_mut().read_to_string().ok()
    }
}

#[test]
fn influxdb_1_takes_good_points_beside_bad_ones() {
    let arguments = |dir: &std::path::Path, port| {
        let dir = dir.display();
        let toml = format!(
            "reporting-disabled = true\nbind-address = \"127.0.0.1:{}\"\n[meta]\ndir = \"{dir}/meta\"\n[data]\ndir = \"{dir}/data\"\n\
             wal-dir = \"{dir}/wal\"\n[http]\nbind-address = \"127.0.0.1:{port}\"\n[monitor]\nstore-enabled = false\n",
            free_port()
        );
        let path = format!("{dir}/influxdb.conf");
        std::fs::write(&path, toml).unwrap();
        vec!["-config".to_owned(), path]
    };
    let Some(server) = Server::start("influxd", arguments, "/ping") else { return };
    let config = config(server.port, v1());
    // Without its database, nothing is lost and nothing is refused.
    let first = records(["{\"t\":1}".to_owned()]);
    assert!(
        matches!(&answers(&mut writer(&config), &first)[..], [Answer::Retry { reason, .. }] if reason.contains("not found"))
    );
    let create = ureq::post(format!("http://127.0.0.1:{}/query?q=CREATE%20DATABASE%20%22plant%203%22", server.port));
    create.send_empty().unwrap();
    // The type of a field is decided by its first point: a text is then refused, alone.
    let mut all: Vec<String> = (0..300).map(|n| format!("{{\"t\":{n},\"on\":true}}")).collect();
    all[100] = "{\"t\":\"warm\"}".to_owned();
    let mut writer = writer(&config);
    assert_eq!(answers(&mut writer, &first), [Answer::Accepted]);
    let answers = answers(&mut writer, &records(all));
    assert_eq!(answers[100], Answer::Refused("http-400".into()), "{:?}", answers[100]);
    assert_eq!(answers.iter().filter(|answer| **answer == Answer::Accepted).count(), 299);
    let count = server.get("/query?db=plant%203&q=SELECT%20count(t)%20FROM%20sedge").unwrap();
    assert!(count.contains("\"count\"],\"values\":[[\"1970-01-01T00:00:00Z\",299]]"), "{count}");
}

#[test]
fn victoria_metrics_takes_points_of_version_2() {
    let arguments = |dir: &std::path::Path, port| {
        vec![format!("-httpListenAddr=127.0.0.1:{port}"), format!("-storageDataPath={}/data", dir.display())]
    };
    let Some(server) = Server::start("victoria-metrics", arguments, "/health") else { return };
    let config = config(server.port, InfluxApi::V2 { org: String::new(), bucket: "b".into() });
    let all = records((0..50).map(|n| format!("{{\"t\":{n},\"labels\":{{\"line\":\"{n}\"}}}}")));
    assert_eq!(answers(&mut writer(&config), &all), vec![Answer::Accepted; 50]);
    let exported = || server.get("/api/v1/export?match[]=sedge_t").unwrap_or_default();
    server.until(|| exported().lines().count() == 50);
    assert!(exported().contains("\"line\":\"49\""), "{}", exported());
}

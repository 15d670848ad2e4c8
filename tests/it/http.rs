//! Requests over HTTP that wake functions, sent as devices and services send them.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::harness::daemon::{Daemon, SEDGE, Setup};
use crate::harness::guest::{guest, root, variant};
use crate::harness::ledger::Ledger;
use crate::harness::mosquitto::{Mosquitto, free_port};
use crate::harness::{Site, eventually, patiently};

/// An answer: status, head and body.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

/// Sends bytes and reads until the connection ends. `None`: it ended without an answer.
fn send(port: u16, bytes: &str) -> Option<Answer> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    stream.set_read_timeout(Some(patiently(Duration::from_secs(30)))).ok()?;
    stream.write_all(bytes.as_bytes()).ok()?;
    let mut answer = Vec::new();
    // A reset after the answer is an end as well.
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some(Answer { status: head.split(' ').nth(1)?.parse().ok()?, head: head.to_owned(), body: body.to_owned() })
}

fn post(port: u16, path: &str, headers: &str, body: &str) -> Option<Answer> {
    let length = body.len();
    send(
        port,
        &format!(
            "POST {path} HTTP/1.1\r\nHost: board\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
        ),
    )
}

/// A file that only its owner reads.
fn secret(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, text).expect("write a secret");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("set permissions");
    format!("file = {path:?}")
}

fn open(broker: &Mosquitto, port: u16) -> Setup {
    let setup = Setup::new(broker.url()).function(&guest("request"));
    setup.set("http_trigger", format!("listen = \"127.0.0.1:{port}\""))
}

#[test]
fn devices_and_services_are_understood() {
    let folder = tempfile::tempdir().unwrap();
    let (broker, port) = (Mosquitto::start(), free_port());
    let setup = open(&broker, port)
        .set("http_trigger.tokens.lan", secret(folder.path(), "token", "s3cret\n"))
        .set("http_trigger.tokens.lan", "paths = [\"/in/*\"]")
        .set("http_trigger.tokens.lan", "in_query = true")
        .set("http_trigger.signatures.github", secret(folder.path(), "github", "It's a Secret to Everybody\n"))
        .set("http_trigger.signatures.github", "paths = [\"/github\"]");
    let daemon = Daemon::start(&setup);
    let told = |request: &str, parts: &[&str]| {
        let answer = send(port, request).unwrap_or_else(|| panic!("no answer to {request:?}; log:\n{}", daemon.log()));
        assert_eq!(answer.status, 200, "{request:?}: {answer:?}");
        for part in parts {
            assert!(answer.body.contains(part), "{part:?} is not in {:?}", answer.body);
        }
        assert!(!answer.body.contains("s3cret"), "no function sees the token: {:?}", answer.body);
    };
    let with_body = |head: &str, body: &str| {
        let length = body.len();
        format!("{head}\r\nHost: board:{port}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
    };
    // Shelly: an action calls a URL, with the values in the query.
    told(
        &format!(
            "GET /in/door?token=s3cret&event=contact.open&temp=21.5 HTTP/1.1\r\nHost: board:{port}\r\nUser-Agent: shelly\r\nConnection: close\r\n\r\n"
        ),
        &[
            "$http/in/door\nno content type",
            "sedge-method=GET",
            "sedge-path-device=door",
            "sedge-query-event=contact.open",
            "sedge-query-temp=21.5",
        ],
    );
    // Tasmota: WebSend with a link, from the HTTP client of its platform.
    told(
        "GET /in/plug?token=s3cret&power=ON HTTP/1.0\r\nHost: board\r\nUser-Agent: ESP8266HTTPClient\r\nAccept-Encoding: identity;q=1,chunked;q=0.1,*;q=0\r\nConnection: close\r\n\r\n",
        &["sedge-query-power=ON", "sedge-header-user-agent=ESP8266HTTPClient"],
    );
    // The Things Stack: a webhook with an additional header.
    let uplink = r#"{"end_device_ids":{"device_id":"dev1","dev_eui":"0004A30B001C0530"},"uplink_message":{"f_port":1,"frm_payload":"AQID"}}"#;
    told(
        &with_body(
            "POST /in/ttn HTTP/1.1\r\nAuthorization: Bearer s3cret\r\nContent-Type: application/json\r\nUser-Agent: TheThingsStack/3.30.0\r\nX-Tts-Domain: example\r\nAccept-Encoding: gzip",
            uplink,
        ),
        &["application/json", "TheThingsStack/3.30.0"],
    );
    // ChirpStack: the kind of event is in the query. Its client sends in chunks where it does not know the length.
    let up = r#"{"deduplicationId":"3ac7e3c4","deviceInfo":{"devEui":"0004A30B001C0530"},"fPort":1,"data":"AQID"}"#;
    told(
        &format!(
            "POST /in/chirpstack?event=up HTTP/1.1\r\nHost: board\r\nAuthorization: Bearer s3cret\r\ncontent-type: application/json\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{up}\r\n0\r\n\r\n",
            up.len()
        ),
        &["application/json", "sedge-query-event=up"],
    );
    // Alertmanager: basic authorization or a bearer token.
    let alert = r#"{"version":"4","status":"firing","alerts":[{"labels":{"alertname":"Cold"}}]}"#;
    told(
        &with_body(
            "POST /in/alertmanager HTTP/1.1\r\nAuthorization: Basic YWxlcnRtYW5hZ2VyOnMzY3JldA==\r\nContent-Type: application/json\r\nUser-Agent: Alertmanager/0.27.0",
            alert,
        ),
        &["sedge-path-device=alertmanager", "Alertmanager/0.27.0"],
    );
    // GitHub: the ping that comes first, signed.
    let ping = r#"{"zen":"Design for failure.","hook_id":1,"hook":{"type":"Repository","events":["push"]}}"#;
    let github = |signature: &str| {
        with_body(
            &format!(
                "POST /github HTTP/1.1\r\nAccept: */*\r\nContent-Type: application/json\r\nUser-Agent: GitHub-Hookshot/044aadd\r\nX-GitHub-Delivery: 72d3162e\r\nX-GitHub-Event: ping\r\nX-Hub-Signature-256: sha256={signature}"
            ),
            ping,
        )
    };
    let signature = "1240e19272e97fe897a834d4255bbe24d8ed7c9c2b04c392a07b76ddb703461c";
    told(
        &github(signature),
        &["$http/github", "sedge-header-x-github-event=ping", "sedge-header-x-github-delivery=72d3162e"],
    );
    assert_eq!(send(port, &github(&signature.replace('1', "2"))).map(|answer| answer.status), Some(401));
    // Everybody else.
    assert_eq!(post(port, "/in/door", "", "x").map(|answer| answer.status), Some(401));
    assert_eq!(
        post(port, "/elsewhere", "Authorization: Bearer s3cret\r\n", "x").map(|answer| answer.status),
        Some(403)
    );
    assert_eq!(daemon.metric_with("sedge_http_requests_total", "2xx"), 6.0);
    assert_eq!(daemon.metric_with("sedge_http_requests_total", "4xx"), 3.0);
    assert_eq!(daemon.metric("sedge_messages_recorded_total"), 6.0, "{}", daemon.counters());
}

#[test]
fn what_a_function_does_is_told_by_the_status() {
    let (broker, port) = (Mosquitto::start(), free_port());
    let daemon = Daemon::start(&open(&broker, port));
    let status = |path: &str, body: &str| post(port, path, "", body).map(|answer| (answer.status, answer.body));
    assert_eq!(status("/in/a", "nothing"), Some((204, String::new())));
    assert_eq!(status("/in/a", "reject too warm"), Some((422, "too warm\ndead letter 1\n".into())));
    let trap = post(port, "/in/b", "", "trap").unwrap();
    assert!(
        trap.status == 500 && trap.head.contains("sedge-dead-letter: 2") && trap.body.contains("trap: "),
        "{trap:?}"
    );
    let shown = daemon.command(&["dead-letters", "show", "2"]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("$http/in/b") && shown.contains("sedge-method"), "{shown}");
    assert_eq!(status("/in/c", "retry"), Some((202, String::new())));
    let ran = || daemon.metric("sedge_function_outputs_total") >= 1.0;
    assert!(eventually(Duration::from_secs(30), ran), "what was stored runs later: {}", daemon.counters());
    assert_eq!(status("/nobody", "x").map(|(status, _)| status), Some(404));
    let other = send(port, "DELETE /in/a HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n").unwrap();
    assert!(other.status == 405 && other.head.contains("allow: POST, GET"), "{other:?}");
    assert_eq!(status("/in/a", &"x".repeat(70_000)).map(|(status, _)| status), Some(413));
    assert_eq!(daemon.metric("sedge_dead_letters_total"), 2.0);
}

#[test]
fn the_example_in_javascript_answers_with_the_last_reading() {
    let example = root().join("examples/javascript/readings");
    let tested = Command::new(SEDGE).arg("test").arg(&example).output().expect("run sedge test");
    assert!(tested.status.success(), "{}", String::from_utf8_lossy(&tested.stdout));
    let (broker, port) = (Mosquitto::start(), free_port());
    let setup = Setup::new(broker.url()).function(&example);
    let _daemon = Daemon::start(&setup.set("http_trigger", format!("listen = \"127.0.0.1:{port}\"")));
    let get = |path: &str| send(port, &format!("GET {path} HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n")).unwrap();
    // While the engine is compiled requests are stored, for later.
    assert!(eventually(Duration::from_secs(60), || get("/readings/kitchen").status == 404));
    let first = post(port, "/readings/kitchen", "", "{\"temperature\": 21.5}").unwrap();
    assert!(first.status == 201 && first.head.contains("content-type: application/json"), "{first:?}");
    assert_eq!(post(port, "/readings/kitchen", "", "{}").map(|answer| answer.status), Some(422));
    let last = get("/readings/kitchen");
    assert_eq!((last.status, &last.body), (200, &first.body), "the reject changed nothing");
    assert!(last.body.contains("\"temperature\":21.5"), "{last:?}");
    assert_eq!(get("/readings/cellar").status, 404, "each path has its own state");
}

#[test]
fn a_repeat_has_the_answer_of_the_first_also_after_a_kill() {
    let (broker, port) = (Mosquitto::start(), free_port());
    let mut daemon = Daemon::start(&open(&broker, port));
    let call = |n: usize| post(port, &format!("/in/{n}"), &format!("Idempotency-Key: k{n}\r\n"), "count me");
    let mut answers: Vec<Option<Answer>> = Vec::new();
    for n in 0..60 {
        // Killed without warning between and during requests.
        let caller = (n % 20 == 19).then(|| std::thread::spawn(move || call_at(port, n)));
        match caller {
            None => answers.push(call(n)),
            Some(caller) => {
                daemon.kill();
                answers.push(caller.join().expect("the caller ends"));
                daemon.resume();
            }
        }
    }
    let answered = answers.iter().flatten().filter(|answer| answer.status == 200).count();
    assert!(answered >= 50, "{answered} of 60 were answered");
    for (n, first) in answers.into_iter().enumerate() {
        let again = call(n).expect("an answer");
        assert!(again.body.ends_with("\ncount=1\n"), "{n} took effect once: {again:?}");
        if let Some(first) = first.filter(|first| first.status == 200) {
            assert_eq!(without_date(&again), without_date(&first), "{n}");
        }
    }
    assert_eq!(post(port, "/in/0", "", "count me").map(|answer| answer.body.contains("count=2")), Some(true));
}

fn call_at(port: u16, n: usize) -> Option<Answer> {
    post(port, &format!("/in/{n}"), &format!("Idempotency-Key: k{n}\r\n"), "count me")
}

fn without_date(answer: &Answer) -> (u16, String, &str) {
    let head = answer.head.lines().filter(|line| !line.starts_with("date:"));
    (answer.status, head.collect::<Vec<_>>().join("\n"), &answer.body)
}

#[test]
fn slow_clients_do_not_hold_up_messages() {
    let port = free_port();
    let site = Site::start_with(|setup| {
        let setup = setup.function(&guest("request"));
        setup.set("http_trigger", format!("listen = \"127.0.0.1:{port}\"")).set("http_trigger", "max_requests = 8")
    });
    let halves =
        ["POST /in/a HTTP/1.1\r\nHost", "POST /in/a HTTP/1.1\r\nHost: b\r\nContent-Length: 99\r\n\r\nhalf", ""];
    let slow: Vec<TcpStream> = (0..200)
        .map(|n| {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connect");
            stream.write_all(halves[n % 3].as_bytes()).expect("send a part");
            stream
        })
        .collect();
    let (mut sensors, mut ledger) = (site.broker.client("sensors"), Ledger::default());
    sensors.publish_all(ledger.batch(10, 200)).unwrap();
    site.settle(&ledger);
    // Behind them all there is an answer too.
    assert_eq!(post(port, "/in/a", "", "x").map(|answer| answer.status), Some(200));
    drop(slow);
}

#[test]
fn routes_that_overlap_are_refused_with_both_names() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Mosquitto::start();
    let other = variant(&guest("request"), folder.path(), "other", "other/#", |manifest| {
        manifest.replace("\"GET /in/{device}\", ", "").replace("\"POST /github\"", "\"PUT /other\"")
    });
    let daemon = Daemon::prepare(&Setup::new(broker.url()).function(&guest("request")).function(&other));
    for command in ["check", "run"] {
        let output = daemon.command(&[command]);
        let says = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{command}: {says}");
        let named = "POST /in/{device} and POST /in/{device} of ";
        assert!(says.contains(named) && says.contains("could both match one request"), "{command}: {says}");
    }
}

#[test]
fn a_board_that_others_could_call_without_a_token_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let (broker, port) = (Mosquitto::start(), free_port());
    let everywhere = || Setup::new(broker.url()).set("http_trigger", format!("listen = \"0.0.0.0:{port}\""));
    let refused = |setup: &Setup, parts: &[&str]| {
        let output = Daemon::prepare(setup).command(&["run"]);
        let says = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{says}");
        parts.iter().for_each(|part| assert!(says.contains(part), "{part:?} is not in:\n{says}"));
    };
    refused(&everywhere(), &["no token is required", "[http_trigger.tokens.NAME]"]);
    let empty = secret(folder.path(), "empty", "\n");
    refused(&everywhere().set("http_trigger.tokens.a", empty), &["empty is empty", "write the secret into it"]);
    let shared = secret(folder.path(), "shared", "s3cret");
    fs::set_permissions(folder.path().join("shared"), fs::Permissions::from_mode(0o644)).unwrap();
    refused(&everywhere().set("http_trigger.tokens.a", shared), &["can be read by every user", "chmod o="]);
}

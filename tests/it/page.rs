//! The page's API: what it answers, to whom, and that `docs/openapi.json` says so.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Lines, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::daemon::{Daemon, SEDGE, Setup};
use crate::harness::guest::guest;
use crate::harness::mosquitto::Mosquitto;
use crate::harness::wire::Publish;
use crate::harness::{Site, eventually};

const PATIENCE: Duration = Duration::from_secs(20);

/// Status, headers and body of the answer to a request.
fn request(port: u16, head: &str, body: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connect to the page");
    stream.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
    write!(stream, "{head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
        .expect("send a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read the answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("an answer has a status");
    (status, head.to_lowercase(), body.to_owned())
}

struct Api<'a> {
    daemon: &'a Daemon,
    token: Option<String>,
}

impl Api<'_> {
    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let token = self.token.as_ref().map(|token| format!("\r\nAuthorization: Bearer {token}")).unwrap_or_default();
        let kind = if body.is_empty() { "" } else { "\r\nContent-Type: application/json" };
        let head = format!("{method} /api/v1/{path} HTTP/1.1\r\nHost: localhost{token}{kind}");
        let (status, _, answer) = request(self.daemon.http_port, &head, body);
        (status, serde_json::from_str(&answer).unwrap_or(Value::String(answer)))
    }

    /// An answer, held against the description of the API.
    #[track_caller]
    fn get(&self, path: &str) -> Value {
        let (status, answer) = self.ask("GET", path, "");
        assert_eq!(status, 200, "{path}: {answer}");
        check_described("get", path, &answer);
        answer
    }

    #[track_caller]
    fn post(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.ask("POST", path, &body.to_string());
        assert_eq!(status, 200, "{path}: {answer}");
        check_described("post", path, &answer);
        answer
    }
}

fn with_token<'a>(daemon: &'a Daemon, token: &str) -> Api<'a> {
    Api { daemon, token: Some(token.to_owned()) }
}

/// A stream of events.
struct Live(Lines<BufReader<TcpStream>>);

impl Live {
    /// Status, and the stream if there is one.
    fn open(api: &Api<'_>, query: &str) -> (u16, Self) {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, api.daemon.http_port)).expect("connect to the page");
        stream.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
        let token = api.token.as_deref().unwrap_or("none");
        // The older version has no chunks.
        write!(stream, "GET /api/v1/live{query} HTTP/1.0\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n")
            .expect("send a request");
        let mut live = Self(BufReader::new(stream).lines());
        let head: Vec<String> = std::iter::from_fn(|| live.line()).take_while(|line| !line.is_empty()).collect();
        let status = head[0].split(' ').nth(1).and_then(|status| status.parse().ok()).expect("an answer has a status");
        assert!(status != 200 || head.iter().any(|line| line == "content-type: text/event-stream"), "{head:?}");
        (status, live)
    }

    fn line(&mut self) -> Option<String> {
        self.0.next().map(|line| line.expect("read from the stream"))
    }

    /// Name and data of the next event, held against the description of the API.
    #[track_caller]
    fn event(&mut self) -> (String, Value) {
        let document: Value = serde_json::from_str(include_str!("../../docs/openapi.json")).expect("it is JSON");
        let field = |line: Option<String>, name: &str| {
            let line = line.expect("the stream goes on");
            line.strip_prefix(name).unwrap_or_else(|| panic!("{line} is no {name}")).to_owned()
        };
        let name = field(self.line(), "event: ");
        let data = serde_json::from_str(&field(self.line(), "data: ")).expect("it is JSON");
        assert_eq!(self.line().as_deref(), Some(""));
        let schema = match name.as_str() {
            "run" => "Run",
            "left-out" => "LeftOut",
            "end" => "Error",
            other => panic!("{other} is not described"),
        };
        check_schema(&document, &document["components"]["schemas"][schema], &data, &name);
        (name, data)
    }

    /// The next run for a topic. Does this until it comes: the board follows shortly after the stream has begun.
    fn run(&mut self, topic: &str, mut cause: impl FnMut()) -> Value {
        loop {
            match self.event() {
                (name, run) if name == "run" && run["topic"] == topic => return run,
                (name, _) if name == "left-out" => cause(),
                _ => {}
            }
        }
    }
}

/// Makes a token for a daemon.
fn token(daemon: &Daemon, arguments: &[&str]) -> String {
    let mut command = Command::new(SEDGE);
    let output = command.arg("token").args(arguments).arg("--data-dir").arg(daemon.data()).output().expect("run sedge");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("a token is text").trim().to_owned()
}

#[track_caller]
fn check_described(method: &str, path: &str, answer: &Value) {
    let document: Value = serde_json::from_str(include_str!("../../docs/openapi.json")).expect("it is JSON");
    let path = format!("/api/v1/{}", path.split('?').next().unwrap_or(path));
    let fits = |template: &str| {
        let (mut levels, mut parts) = (path.split('/'), template.split('/'));
        levels.clone().count() == parts.clone().count()
            && levels.all(|level| parts.next().is_some_and(|part| part.starts_with('{') || part == level))
    };
    let described = document["paths"].as_object().expect("it has paths").iter().filter(|(template, _)| fits(template));
    let mut operations: Vec<_> = described.filter(|(_, methods)| methods.get(method).is_some()).collect();
    // The exact path before a pattern.
    operations.sort_by_key(|(template, _)| template.contains('{'));
    let (_, methods) = operations.first().unwrap_or_else(|| panic!("{method} {path} is not described"));
    let schema = &methods[method]["responses"]["200"]["content"]["application/json"]["schema"];
    check_schema(&document, schema, answer, &path);
}

/// The part of JSON Schema that the document uses.
#[track_caller]
fn check_schema(document: &Value, schema: &Value, value: &Value, at: &str) {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.strip_prefix('#').expect("a reference within the document");
        return check_schema(document, document.pointer(name).expect(name), value, at);
    }
    if let Some(ways) = schema["oneOf"].as_array() {
        let way = ways.iter().find(|way| (way["type"] == "null") == value.is_null()).expect(at);
        return check_schema(document, way, value, at);
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        other => panic!("{at}: type {other}"),
    };
    let is = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    assert!(types.contains(&is) || (is == "integer" && types.contains(&"number")), "{at}: {value} is not {types:?}");
    for (n, item) in value.as_array().into_iter().flatten().enumerate() {
        check_schema(document, &schema["items"], item, &format!("{at}[{n}]"));
    }
    let Some(properties) = schema["properties"].as_object() else { return };
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        assert!(value.is_null() || value.get(name).is_some(), "{at}: {name} is missing in {value}");
    }
    for (name, item) in value.as_object().into_iter().flatten() {
        let schema = properties.get(name).unwrap_or_else(|| panic!("{at}: {name} is not described"));
        check_schema(document, schema, item, &format!("{at}.{name}"));
    }
}

#[test]
fn the_page_shows_functions_alerts_state_and_dead_letters() {
    let set = "disk_endurance_tb = 64";
    let site = Site::start_with(|setup| setup.function(&guest("misbehave")).set("store", set));
    let mut hand = site.broker.client("hand");
    for n in 0..10 {
        let properties = vec![("id".to_owned(), format!("reading {n}"))];
        hand.publish(Publish { properties, ..Publish::new("count/<b>oven</b>", n.to_string()) }).unwrap();
    }
    for _ in 0..3 {
        hand.publish(Publish::new("misbehave/<script>", "reject <img src=x>")).unwrap();
    }
    let done = eventually(PATIENCE, || site.daemon.metric("sedge_messages_acknowledged_total") >= 13.0);
    assert!(done, "{}", site.daemon.counters());

    let mut api = Api { daemon: &site.daemon, token: None };
    let board = api.get("board");
    assert_eq!((&board["node"], &board["dead_letters"]), (&json!("board"), &json!(3)));
    assert_eq!(board["broker"], json!({ "connected": true }));
    assert!(board["figures"]["messages"]["received"].as_u64() >= Some(13), "{board}");
    assert!(board["checks"].as_array().unwrap().iter().any(|it| it["check"] == "disk"), "{board}");
    assert_eq!(
        board["wear"],
        json!({ "written_bytes_per_day": null, "endurance_bytes": 64_000_000_000_000u64, "years": null })
    );
    let functions = api.get("functions");
    let count = functions["functions"].as_array().unwrap().iter().find(|it| it["name"] == "count").unwrap();
    assert_eq!(count["figures"]["invocations"], 10);
    assert_eq!(count["report"]["active"]["version"], "1.0.0");
    let alerts = api.get("alerts");
    assert_eq!(alerts["firing"][0]["key"], "count/<b>oven</b>/10");
    assert_eq!(alerts["events"].as_array().map(Vec::len), Some(1));
    let firing = &alerts["firing"][0];
    assert_eq!(firing["message_id"], "reading 9", "the message that caused it");
    assert!(firing["received_ms"].as_u64() > Some(0) && alerts["events"][0]["received_ms"] == firing["received_ms"]);

    // Payloads and state, and all that acts, need a token.
    for (method, path) in [
        ("GET", "dead-letters"),
        ("GET", "dead-letters/1"),
        ("GET", "functions/count/state"),
        ("GET", "functions/count/state/entries?topic=count/x"),
    ] {
        assert_eq!(api.ask(method, path, "").0, 401, "{path}");
    }
    assert_eq!(api.ask("POST", "dead-letters/drop", r#"{"all":true}"#).0, 401);
    api.token = Some(token(&site.daemon, &["anna"]));

    let scopes = api.get("functions/count/state?search=oven");
    assert_eq!(scopes["scopes"][0]["topic"], "count/<b>oven</b>");
    assert_eq!(api.get("functions/count/state?search=attic")["scopes"], json!([]));
    let entries = api.get("functions/count/state/entries?topic=count/%3Cb%3Eoven%3C/b%3E");
    assert_eq!(entries["entries"], json!([{ "key": "count", "text": "10", "hex": null, "bytes": 2 }]));
    assert_eq!(api.ask("GET", "functions/count/state/entries?topic=none", "").0, 404);

    let letters = api.get("dead-letters?limit=2");
    assert_eq!((letters["dead_letters"].as_array().map(Vec::len), &letters["more"]), (Some(2), &json!(true)));
    let last = letters["dead_letters"][1]["id"].as_u64().unwrap();
    let rest = api.get(&format!("dead-letters?before={last}"));
    assert_eq!((rest["dead_letters"].as_array().map(Vec::len), &rest["more"]), (Some(1), &json!(false)));
    let letter = api.get(&format!("dead-letters/{last}"));
    assert_eq!(letter["message"]["payload"], "reject <img src=x>");
    assert_eq!(api.ask("GET", "dead-letters?reason=unheard", "").0, 422);
    // Those of one message.
    let received = rest["dead_letters"][0]["received_ms"].as_u64().unwrap();
    let of = |topic: &str, received| api.get(&format!("dead-letters?topic={topic}&received_ms={received}"));
    let of_it = of("misbehave/%3Cscript%3E", received);
    assert!(
        of_it["dead_letters"].as_array().unwrap().iter().any(|it| it["id"] == rest["dead_letters"][0]["id"]),
        "{of_it}"
    );
    assert_eq!(of("misbehave/%3Cscript%3E", received - 100_000)["dead_letters"], json!([]));
    assert_eq!(of("other", received)["dead_letters"], json!([]));
    assert_eq!(api.ask("GET", &format!("dead-letters?received_ms={received}"), "").0, 422, "half of a message");

    for unclear in [json!({}), json!({ "ids": [1], "all": true }), json!({ "function": "count" })] {
        assert_eq!(api.ask("POST", "dead-letters/drop", &unclear.to_string()).0, 422, "{unclear}");
    }
    assert_eq!(api.post("dead-letters/replay", &json!({ "ids": [last] })), json!({ "replayed": 1 }));
    // It is rejected again.
    let again = || api.get("dead-letters")["dead_letters"][0]["attempt"] == 2;
    assert!(eventually(PATIENCE, again), "{}", api.get("dead-letters"));
    assert_eq!(
        api.post("dead-letters/drop", &json!({ "all": true, "function": "misbehave" })),
        json!({ "dropped": 3 })
    );
    assert!(site.daemon.log().contains("dead letters dropped from the page"), "{}", site.daemon.log());

    // A pause is shown with its reason and what is left of it.
    for _ in 0..25 {
        hand.publish(Publish::new("misbehave/paused", "trap")).unwrap();
    }
    let pause = || {
        let functions = api.get("functions");
        let misbehave = functions["functions"].as_array().unwrap().iter().find(|it| it["name"] == "misbehave").unwrap();
        misbehave["pauses"][0].clone()
    };
    assert!(eventually(PATIENCE, || pause()["topic"] == "misbehave/paused"), "{}", api.get("functions"));
    assert!(pause()["reason"].as_str().unwrap().starts_with("trap: ") && pause()["seconds_left"].as_u64() > Some(0));

    // Alerts are still there after a restart.
    let of_anna = api.token.take();
    let mut site = site;
    site.daemon.terminate();
    site.daemon.resume();
    let api = Api { daemon: &site.daemon, token: of_anna };
    assert_eq!(api.get("alerts")["firing"][0]["key"], "count/<b>oven</b>/10");

    token(&site.daemon, &["anna", "--revoke"]);
    assert_eq!(api.ask("GET", "dead-letters", "").0, 401, "it is withdrawn at once");
}

/// From other machines: with TLS, and nothing but the page's own files without a token.
#[test]
fn beyond_this_machine_it_needs_tls_and_a_token() {
    let broker = Mosquitto::start();
    let certificates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../daemon/src/sinks/testdata");
    let file = |name: &str| certificates.join(name);
    let mut daemon = Daemon::prepare(
        &Setup::new(broker.url())
            .function(&guest("count"))
            .set("http", format!("cert_file = {:?}", file("server.pem")))
            .set("http", format!("key_file = {:?}", file("server.key"))),
    );
    let text = fs::read_to_string(daemon.config()).expect("read the configuration");
    let listen = format!("127.0.0.1:{}", daemon.http_port);
    let beyond = format!("0.0.0.0:{}", daemon.http_port);
    fs::write(daemon.config(), text.replace(&listen, &beyond)).expect("write the configuration");
    daemon.launch();
    broker.await_daemon();
    let secret = daemon.data().join("anna");
    let ask = |more: &[&OsStr]| {
        let mut command = Command::new(SEDGE);
        command.args(["alerts", "--json", "--url"]).arg(format!("https://localhost:{}", daemon.http_port));
        command.arg("--ca-file").arg(file("ca.pem")).args(more).env_remove("SEDGE_TOKEN_FILE");
        let output = command.output().expect("run sedge");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (is_shown, error) = ask(&[]);
    assert!(!is_shown && error.contains("this needs a token"), "{error}");
    fs::write(&secret, token(&daemon, &["anna"])).expect("write the token");
    let (is_shown, error) = ask(&["--token-file".as_ref(), secret.as_ref()]);
    assert!(is_shown, "{error}");
    // Whoever does not encrypt gets nothing, and the daemon goes on.
    let plain = |path: &str| {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, daemon.http_port)).expect("connect to the page");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("send a request");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    assert!(!plain("/metrics").contains("HTTP/1.1"));
    let (is_shown, error) = ask(&["--token-file".as_ref(), secret.as_ref()]);
    assert!(is_shown, "{error}");
    // At the socket in the data folder all is as on this machine.
    let mut socket = UnixStream::connect(daemon.data().join("http.sock")).expect("connect to the socket");
    socket.write_all(b"GET /api/v1/board HTTP/1.0\r\nHost: localhost\r\n\r\n").expect("send a request");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("read the answer");
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
}

#[test]
fn runs_are_shown_live_to_those_who_have_a_token() {
    let site = Site::start_with(|setup| {
        let large = "max_payload_bytes = 2_000_000\nmax_packet_bytes = 3_000_000";
        setup.function(&guest("misbehave")).set("mqtt", large)
    });
    let mut hand = site.broker.client("hand");
    let mut api = Api { daemon: &site.daemon, token: None };
    assert_eq!(Live::open(&api, "").0, 401);
    api.token = Some(token(&site.daemon, &["anna"]));
    assert_eq!(Live::open(&api, "?topic=a%23").0, 422, "that is no filter");

    let (_, mut of_topic) = Live::open(&api, "?topic=misbehave/%2b");
    let run = of_topic.run("misbehave/<b>", || hand.publish(Publish::new("misbehave/<b>", "reject <img>")).unwrap());
    assert_eq!(
        (&run["result"], &run["reason"], &run["payload"]["text"]),
        (&json!("failed"), &json!("rejected"), &json!("reject <img>"))
    );
    let log = of_topic.run("misbehave/b", || hand.publish(Publish::new("misbehave/b", "log")).unwrap());
    assert!(log["log"][0]["text"].as_str().is_some_and(|line| line.starts_with("xxx")), "{log}");

    let (_, mut of_count) = Live::open(&api, "?function=count");
    let large = "y".repeat(1 << 20);
    let run = of_count.run("count/large", || hand.publish(Publish::new("count/large", large.as_str())).unwrap());
    assert_eq!((&run["payload"]["bytes"], &run["payload"]["is_cut"]), (&json!(1 << 20), &json!(true)));
    assert_eq!(run["payload"]["text"].as_str().map(str::len), Some(4096));
    let run = of_count.run("count/oven", || hand.publish(Publish::new("count/oven", "21.5")).unwrap());
    assert_eq!((&run["outputs"][0]["kind"], &run["outputs"][0]["to"]), (&json!("forward"), &json!("count/oven")));
    assert_eq!((&run["state"][0]["key"], &run["hops"]), (&json!("count"), &json!(0)));
    assert!(run["fuel"].as_u64() > Some(0), "{run}");

    // As many as there may be, and room again once one is closed.
    let mut others: Vec<_> = std::iter::repeat_with(|| Live::open(&api, "")).take(7).collect();
    assert_eq!(others.iter().map(|(status, _)| *status).collect::<Vec<_>>(), [200, 200, 200, 200, 200, 200, 503]);
    others.clear();
    assert!(eventually(PATIENCE, || Live::open(&api, "").0 == 200));
    // Streams take no place from the API.
    api.get("board");

    token(&site.daemon, &["anna", "--revoke"]);
    let end = std::iter::from_fn(|| Some(of_count.event())).find(|(name, _)| name == "end").unwrap();
    assert_eq!(end.1["error"], "no such token");
    assert_eq!(of_count.line(), None);
}

/// Runs a command that reads the page.
fn read_page(daemon: &Daemon, arguments: &[&str]) -> std::process::Output {
    let url = format!("http://127.0.0.1:{}", daemon.http_port);
    let mut command = Command::new(SEDGE);
    command.args(arguments).args(["--url", &url]).env_remove("SEDGE_TOKEN_FILE").output().expect("run sedge")
}

#[test]
fn runs_and_alerts_are_shown_in_a_terminal() {
    let site = Site::start();
    let mut hand = site.broker.client("hand");
    let refused = read_page(&site.daemon, &["tail"]);
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && error.contains("sedge token") && error.contains("--token-file"), "{error}");

    let file = site.daemon.data().join("of-anna");
    fs::write(&file, token(&site.daemon, &["anna"])).unwrap();
    let shown = std::thread::scope(|scope| {
        let tail = |more: &[&str]| {
            let arguments = [&["tail", "--count", "1", "--token-file", file.to_str().unwrap()][..], more].concat();
            read_page(&site.daemon, &arguments)
        };
        let json = scope.spawn(move || tail(&["--json", "--topic", "count/+"]));
        let text = scope.spawn(move || tail(&["--function", "count"]));
        while !(json.is_finished() && text.is_finished()) {
            hand.publish(Publish::new("count/oven", "\u{1b}[2J7")).unwrap();
        }
        [json, text].map(|it| it.join().unwrap())
    });
    let run: Value = serde_json::from_slice(&shown[0].stdout).unwrap_or_else(|_| panic!("{:?}", shown[0]));
    assert_eq!((&run["topic"], &run["outputs"][0]["kind"]), (&json!("count/oven"), &json!("forward")));
    let text = String::from_utf8_lossy(&shown[1].stdout);
    assert!(text.contains("count/oven  done  \\u{1b}[2J7") && text.contains("state    count = "), "{text}");
    assert!(text.contains("used     fuel "), "{text}");

    for n in 0..10 {
        hand.publish(Publish::new("count/attic", n.to_string())).unwrap();
    }
    let alerts = || String::from_utf8_lossy(&read_page(&site.daemon, &["alerts"]).stdout).into_owned();
    assert!(eventually(PATIENCE, || alerts().contains("9 10  count/attic  count/attic/10 of count")), "{}", alerts());
    let show = |more: &[&str]| {
        let arguments = [&["alerts", "show", "count", "count/attic/10"][..], more].concat();
        String::from_utf8_lossy(&read_page(&site.daemon, &arguments).stdout).into_owned()
    };
    let shown = show(&["--token-file", file.to_str().unwrap()]);
    for part in ["\nmessage: count/attic at 2", "\ndead letters of it: none\n", "sedge tail --topic 'count/attic'"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(show(&[]).contains("--token-file"), "{}", show(&[]));
    let json: Value = serde_json::from_str(&show(&["--json", "--token-file", file.to_str().unwrap()])).unwrap();
    assert_eq!((&json["topic"], &json["dead_letters"]), (&json!("count/attic"), &json!([])));
    let history = read_page(&site.daemon, &["alerts", "--history"]);
    assert!(String::from_utf8_lossy(&history.stdout).contains("firing"), "{history:?}");

    // Not a terminal: once, as text.
    let top = read_page(&site.daemon, &["top"]);
    let text = String::from_utf8_lossy(&top.stdout);
    assert!(top.status.success() && text.starts_with("board  ") && text.contains("\ncount "), "{top:?}");
    assert!(text.contains(", sink upstream connected; outbox "), "{text}");
    assert!(text.contains("count/attic"), "what fires: {text}");
    let top: Value = serde_json::from_slice(&read_page(&site.daemon, &["top", "--json"]).stdout).unwrap();
    assert_eq!((&top["board"]["node"], &top["functions"][0]["name"]), (&json!("board"), &json!("count")));

    let nowhere = Command::new(SEDGE).args(["alerts", "--url", "http://127.0.0.1:1"]).output().expect("run sedge");
    let error = String::from_utf8_lossy(&nowhere.stderr);
    assert!(!nowhere.status.success() && error.contains("http.listen") && error.contains("--url"), "{error}");
}

#[test]
fn the_way_of_a_message_is_shown_to_those_who_have_a_token() {
    let site = Site::start_with(|setup| setup.function(&guest("misbehave")).set("trace", "sample = 1"));
    let mut hand = site.broker.client("hand");
    hand.publish(Publish::new("count/oven", "7").with_property("id", "m-1")).unwrap();
    hand.publish(Publish::new("misbehave/a", "trap <secret>").with_property("id", "m-2")).unwrap();
    let mut api = Api { daemon: &site.daemon, token: None };
    for path in ["traces", "traces/m-1"] {
        assert_eq!(api.ask("GET", path, "").0, 401, "{path}");
    }
    api.token = Some(token(&site.daemon, &["anna"]));
    let steps = |trace: &Value| {
        let mut steps: Vec<String> = Vec::new();
        for span in trace["spans"].as_array().into_iter().flatten() {
            steps.push(span["step"].as_str().unwrap().to_owned());
        }
        steps.sort();
        steps.join(" ")
    };
    let all = "acknowledged committed invoked received routed sent";
    assert!(eventually(PATIENCE, || steps(&api.ask("GET", "traces/m-1", "").1) == all), "{}", site.daemon.counters());
    assert!(eventually(PATIENCE, || api.ask("GET", "traces/m-2", "").0 == 200));
    let trace = api.get("traces/m-1");
    let id = trace["trace_id"].as_str().unwrap().to_owned();
    assert_eq!(api.get(&format!("traces/{id}")), trace);
    let sent = trace["spans"].as_array().unwrap().iter().find(|span| span["step"] == "sent").unwrap();
    let record = site.upstream.received().into_iter().find(|it| it.topic.ends_with("count/oven")).unwrap();
    let parent = format!("00-{id}-{}-01", sent["span_id"].as_str().unwrap());
    assert_eq!(record.property("traceparent"), Some(&*parent), "who receives it goes on below the span of sending it");
    assert_eq!(api.get(&format!("traces/{}", record.property("id").unwrap()))["trace_id"], trace["trace_id"]);

    let failed = api.get("traces/m-2");
    assert!(!failed.to_string().contains("secret"), "{failed}");
    let list = api.get("traces");
    assert_eq!((&list["traces"][0]["error"], &list["traces"][0]["functions"]), (&json!("trap"), &json!(["misbehave"])));
    assert_eq!(api.get("traces?id=m-1")["traces"][0]["trace_id"], trace["trace_id"]);
    assert_eq!(api.ask("GET", "traces/m-3", "").0, 404);

    let file = site.daemon.data().join("of-anna");
    fs::write(&file, api.token.as_ref().unwrap()).unwrap();
    let shown = |more: &[&str]| {
        let output = read_page(&site.daemon, &[&["trace", "--token-file", file.to_str().unwrap()][..], more].concat());
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned(), output.stderr)
    };
    let (_, text, _) = shown(&["m-1"]);
    assert!(text.contains("invoked") && text.contains("function=count") && text.contains("sink=upstream"), "{text}");
    assert!(shown(&[]).1.contains("misbehave/a  misbehave"), "{:?}", shown(&[]));
    let json: Value = serde_json::from_str(&shown(&["m-1", "--json"]).1).unwrap();
    assert_eq!(json["trace_id"], trace["trace_id"]);
    let (is_good, _, error) = shown(&["m-3"]);
    assert!(!is_good && String::from_utf8_lossy(&error).contains("trace.sample"), "{error:?}");
}

#[test]
fn a_muted_alert_is_recorded_and_counted_and_not_sent_also_after_a_restart() {
    let mut site = Site::start();
    let mut hand = site.broker.client("hand");
    let mut local = site.broker.client("local");
    local.subscribe(&["sedge/board/alerts/count"]).unwrap();
    let of_anna = token(&site.daemon, &["anna"]);
    let file = site.daemon.data().join("of-anna");
    fs::write(&file, &of_anna).unwrap();
    let mut ten = |topic: &str| (0..10).for_each(|n| hand.publish(Publish::new(topic, n.to_string())).unwrap());
    let mut echo = || {
        let echo = local.receive(PATIENCE).unwrap().expect("the local broker has the alert");
        serde_json::from_slice::<Value>(&echo.payload).unwrap()
    };
    let sent = |site: &Site, key: &str| {
        let is_it =
            |it: &Publish| it.topic.ends_with("alerts/count") && String::from_utf8_lossy(&it.payload).contains(key);
        site.upstream.received().iter().filter(|it| is_it(it)).count()
    };
    let mute = json!({ "function": "count", "key": "count/oven/20", "seconds": 3600 });

    // Not without a token, and no other page can send one.
    let stranger = Api { daemon: &site.daemon, token: None };
    assert_eq!(stranger.ask("POST", "alerts/mute", &mute.to_string()).0, 401);
    let first = json!({ "function": "count", "key": "count/oven/10" });
    assert_eq!(stranger.ask("POST", "alerts/acknowledge", &first.to_string()).0, 401);
    let form = "POST /api/v1/alerts/mute HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain";
    assert!([401, 415].contains(&request(site.daemon.http_port, form, &mute.to_string()).0));
    let too_long = json!({ "function": "count", "key": "k", "seconds": u32::MAX });
    assert_eq!(with_token(&site.daemon, &of_anna).ask("POST", "alerts/mute", &too_long.to_string()).0, 422);
    let silent = json!({ "function": "count", "key": "nothing" });
    assert_eq!(with_token(&site.daemon, &of_anna).ask("POST", "alerts/acknowledge", &silent.to_string()).0, 404);

    ten("count/oven");
    assert_eq!(echo()["muted"], Value::Null);
    assert!(eventually(PATIENCE, || sent(&site, "count/oven/10") == 1));
    with_token(&site.daemon, &of_anna).post("alerts/acknowledge", &first);
    assert_eq!(with_token(&site.daemon, &of_anna).get("alerts")["firing"][0]["acknowledged"]["by"], "anna");
    assert!(with_token(&site.daemon, &of_anna).post("alerts/mute", &mute)["until_ms"].as_u64() > Some(0));
    assert!(site.daemon.log().contains("alert muted") && site.daemon.log().contains("anna"), "{}", site.daemon.log());

    // As after a loss of power.
    site.daemon.kill();
    site.daemon.resume();
    site.broker.await_daemon();
    let alerts = with_token(&site.daemon, &of_anna).get("alerts");
    assert_eq!((&alerts["mutes"][0]["key"], &alerts["mutes"][0]["by"]), (&json!("count/oven/20"), &json!("anna")));
    assert_eq!(alerts["firing"][0]["acknowledged"]["by"], "anna");
    ten("count/oven");
    // The first may be published once more.
    let echo_of_muted = std::iter::repeat_with(&mut echo).find(|it| it["key"] != "count/oven/10").unwrap();
    assert_eq!((&echo_of_muted["key"], &echo_of_muted["muted"]), (&json!("count/oven/20"), &json!(true)));
    assert!(site.daemon.metric("sedge_function_muted_alerts_total") > 0.0, "{}", site.daemon.counters());
    // What comes later is sent: the muted one would have come before it.
    ten("count/oven");
    assert!(eventually(PATIENCE, || sent(&site, "count/oven/30") == 1));
    assert_eq!(sent(&site, "count/oven/20"), 0);
    assert!(!site.upstream.received().iter().any(|it| it.topic.contains("/gaps")), "a muted alert is no part of a gap");

    let by_hand = |action: &str| {
        read_page(&site.daemon, &["alerts", action, "count", "count/oven/20", "--token-file", file.to_str().unwrap()])
    };
    let shown = String::from_utf8_lossy(&read_page(&site.daemon, &["alerts"]).stdout).into_owned();
    assert!(shown.contains(", muted until ") && shown.contains(", seen by anna"), "{shown}");
    assert_eq!(String::from_utf8_lossy(&by_hand("unmute").stdout), "count/oven/20 of count is unmuted\n");
    assert_eq!(String::from_utf8_lossy(&by_hand("unmute").stdout), "count/oven/20 of count is not muted\n");
    assert!(by_hand("mute").status.success() && by_hand("ack").status.success());
    let statuses: Vec<_> = with_token(&site.daemon, &of_anna).get("alerts")["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["status"].clone())
        .collect();
    assert_eq!(statuses[..4], [json!("acknowledged"), json!("muted"), json!("unmuted"), json!("firing")]);
}

#[test]
fn the_page_is_served_under_the_names_of_the_board_only_and_lets_no_script_in() {
    let broker = Mosquitto::start();
    let setup = Setup::new(broker.url()).function(&guest("count")).set("http", "hosts = [\"greenhouse.local\"]");
    let daemon = Daemon::start(&setup);
    let page =
        |host: &str| request(daemon.http_port, &format!("GET / HTTP/1.1\r\nHost: {host}\r\nAccept: text/html"), "");
    for host in ["localhost:1", "127.0.0.1", "greenhouse.local"] {
        let (status, head, body) = page(host);
        assert_eq!(status, 200, "{host}");
        assert!(head.contains("content-type: text/html"), "{head}");
        let policy = head.lines().find_map(|line| line.strip_prefix("content-security-policy: ")).expect("a policy");
        assert!(policy.starts_with("default-src 'none'; script-src 'self'") && !policy.contains("unsafe"), "{policy}");
        assert!(!body.contains("<script>") && !body.contains("style="), "no script or style is in line");
        for file in body.split("\"/page/").skip(1).map(|rest| rest.split('"').next().unwrap()) {
            let (status, ..) = request(daemon.http_port, &format!("GET /page/{file} HTTP/1.1\r\nHost: {host}"), "");
            assert_eq!(status, 200, "{file}");
        }
    }
    assert_eq!(page("evil.example").0, 421);
    let (status, ..) = request(daemon.http_port, "GET /api/v1/board HTTP/1.1\r\nHost: evil.example", "");
    assert_eq!(status, 421, "another name that leads here (DNS rebinding)");
    // A form on another page can send this, and no token.
    let form = "POST /api/v1/dead-letters/drop HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain";
    assert!([401, 415].contains(&request(daemon.http_port, form, r#"{"all":true}"#).0));
}

//! A corpus of mistakes, and the tests that keep `sedge.toml` and the reference in step with the code.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::document::Table;
use super::*;

const ANNOTATED: &str = include_str!("../../../sedge/sedge.toml");

fn inspect(text: &str) -> (Config, Vec<String>) {
    let (config, problems) = Config::parse(text, Path::new("sedge.toml"));
    (config, problems.iter().map(|problem| problem.to_string()).collect())
}

/// Expects these problems and no others.
#[track_caller]
fn check(text: &str, expected: &[&str]) {
    assert_eq!(inspect(text).1, expected, "in:\n{text}");
}

#[test]
fn a_good_configuration_has_no_problems() {
    check("", &[]);
    let text = r#"
        node = { name = "board-7", groups = ["plant", "east"] }
        mqtt.url = "mqtt://[::1]:1884/"
        mqtt.share_group = "edge"
        [store]
        max_age_secs = 3600
        dead_letter_max_age_secs = "off"
        when_full = "block"
        [upstream]
        url = "https://example.com/in?site=7"
        [http]
        listen = "off"
        [log]
        level = "info,sedge::mqtt=debug"
    "#;
    check(text, &[]);
    let (config, _) = inspect(text);
    assert_eq!(config.node.name, "board-7");
    assert_eq!(config.node.groups, ["plant", "east"]);
    assert_eq!(config.mqtt.share_group.as_deref(), Some("edge"));
    assert_eq!(config.store.max_age_secs.map(NonZeroU64::get), Some(3600));
    assert_eq!(config.store.dead_letter_max_age_secs, None);
    assert_eq!(config.store.when_full, WhenFull::Block);
    assert_eq!(config.upstream().unwrap().connection.url.as_str(), "https://example.com/in?site=7");
    assert_eq!(config.http.listen, None);
}

#[test]
fn recording_without_a_key_that_may_record_is_a_warning() {
    let fix = "set record = true in a section [deploy.keys.NAME], or remove this";
    check(
        "[recording]\nenabled = true",
        &[&format!("sedge.toml:2:11: warning: recording.enabled: no key of this configuration may record; {fix}")],
    );
    check(
        "[recording]\nmax_bytes = 1000",
        &["sedge.toml:2:13: recording.max_bytes: 1000 is too small; use at least 65536"],
    );
    let (config, problems) =
        inspect("[recording]\nenabled = true\n[deploy.keys.ops]\nfile = \"ops.pem\"\nrecord = true");
    assert!(config.recording.enabled && !problems.iter().any(|it| it.contains("recording")), "{problems:?}");
}

#[test]
fn the_prefix_of_home_assistant_is_the_beginning_of_topics_and_not_one_of_our_own() {
    let hint = "write it as in Home Assistant, for example \"homeassistant\"";
    for (prefix, problem) in [
        ("home//assistant", "\"home//assistant\" has an empty level"),
        ("homeassistant/", "\"homeassistant/\" has an empty level"),
        ("sedge/ha", "\"sedge\" is the first level of Sedge's own topics"),
        ("home/+", "topic name contains a wildcard (+ or #)"),
    ] {
        let expected = format!("sedge.toml:2:10: home_assistant.prefix: {problem}; {hint}");
        check(&format!("[home_assistant]\nprefix = {prefix:?}"), &[&expected]);
    }
    let text = "[home_assistant]\nprefix = \"$SYS\"";
    let expected = "home_assistant.prefix: \"$SYS\" begins with $; topics with $ belong to the broker";
    check(text, &[&format!("sedge.toml:2:10: {expected}")]);
    let (config, problems) = inspect("[home_assistant]\ndiscovery = true\nprefix = \"site/ha\"");
    assert!(problems.is_empty() && config.home_assistant.discovery && config.home_assistant.prefix == "site/ha");
}

#[test]
fn every_problem_is_reported_at_once_in_the_order_of_the_file() {
    check(
        "[mqtt]\nurl = \"localhost\"\nrecieve_maximum = 10\n\n[store]\nwhen_full = \"drop-oldest\"\nmax_bytes = 0\n\n[mqt]\n",
        &[
            "sedge.toml:2:7: mqtt.url: invalid address \"localhost\": the scheme is missing; write mqtt://localhost",
            "sedge.toml:3:1: mqtt.recieve_maximum: unknown key; did you mean receive_maximum?",
            "sedge.toml:6:13: store.when_full: unknown value \"drop-oldest\"; use one of [\"drop-oldest-data\", \"thin\", \"block\"]",
            "sedge.toml:7:13: store.max_bytes: 0 is too small; use at least 1",
            "sedge.toml:9:2: mqt: unknown key; did you mean mqtt?",
        ],
    );
}

#[test]
fn headers_of_a_webhook_have_a_value_or_a_file() {
    let text = "[upstream]\nurl = \"https://a/in\"\n[upstream.headers]\nX-Site = { value = \"7\" }\nX-Both = { value = \"7\", file = \"f\" }\n\
                X-None = {}\nCe-Id = { value = \"7\" }\nX-Line = { value = \"a\\nb\" }\n";
    let (config, problems) = inspect(text);
    assert_eq!(config.upstream().unwrap().headers["X-Site"].value.as_deref(), Some("7"));
    for part in ["either value or file", "X-None.value: missing", "Ce-Id is set by Sedge itself", "cannot be the value"]
    {
        assert!(problems.iter().any(|problem| problem.contains(part)), "{part}: {problems:#?}");
    }
    assert!(!problems.iter().any(|problem| problem.contains("X-Site")), "{problems:#?}");
}

#[test]
fn a_pinned_certificate_is_named_by_its_digest() {
    let digest = "AB:".repeat(31) + "AB";
    let text = format!("[mqtt]\nurl = \"mqtts://a\"\ntls_pin_sha256 = {digest:?}\ntls_alpn = [\"mqtt\"]");
    check(&text, &[]);
    assert_eq!(inspect(&text).0.mqtt.connection.tls_pin_sha256, Some(Digest([0xab; 32])));
    let (_, problems) = inspect("[mqtt]\nurl = \"mqtts://a\"\ntls_pin_sha256 = \"ab\"");
    assert!(problems[0].contains("is not a SHA-256 digest") && problems[0].contains("openssl x509"), "{problems:?}");
    let (_, problems) = inspect("[upstream]\nurl = \"https://a\"\ntls_alpn = [\"mqtt\"]");
    assert!(problems[0].contains("not used by a webhook"), "{problems:?}");
}

#[test]
fn an_empty_prefix_is_for_another_broker() {
    check("[upstream]\nurl = \"mqtt://broker.example\"\ntopic_prefix = \"\"", &[]);
    let (_, problems) = inspect("[upstream]\nurl = \"mqtt://localhost\"\ntopic_prefix = \"\"");
    assert_eq!(problems.len(), 1, "{problems:?}");
}

#[test]
fn unknown_keys() {
    check("[node]\nNAME = \"a\"", &["sedge.toml:2:1: node.NAME: unknown key; did you mean name?"]);
    check("[mqtt]\nkeep_alive = 5", &["sedge.toml:2:1: mqtt.keep_alive: unknown key; did you mean keep_alive_secs?"]);
    check(
        "[mqtt]\nkeep-alive-secs = 5",
        &["sedge.toml:2:1: mqtt.keep-alive-secs: unknown key; did you mean keep_alive_secs?"],
    );
    check("[node]\nreceive_maximum = 5", &["sedge.toml:2:1: node.receive_maximum: unknown key; it belongs in [mqtt]"]);
    check(
        "[http]\nport = 80",
        &["sedge.toml:2:1: http.port: unknown key; known here: listen, cert_file, key_file, hosts"],
    );
    check("url = \"mqtt://a\"", &["sedge.toml:1:1: url: unknown key; it belongs in [mqtt]"]);
    check(
        "[upstream]\nurl = \"mqtt://a\"\ntopic = \"x\"",
        &["sedge.toml:3:1: upstream.topic: unknown key; did you mean topic_prefix?"],
    );
}

#[test]
fn wrong_types() {
    check(
        "[mqtt]\nreceive_maximum = \"10\"",
        &["sedge.toml:2:19: mqtt.receive_maximum: expected a whole number, found a string; write it without quotes"],
    );
    check(
        "[mqtt]\nreceive_maximum = 1.5",
        &["sedge.toml:2:19: mqtt.receive_maximum: expected a whole number, found a number with a fraction"],
    );
    check(
        "[mqtt]\nreceive_maximum = 70000",
        &["sedge.toml:2:19: mqtt.receive_maximum: the number is too large; use at most 65535"],
    );
    check("[mqtt]\nreceive_maximum = -1", &["sedge.toml:2:19: mqtt.receive_maximum: -1 is too small; use at least 1"]);
    check(
        "[mqtt]\nusername = 7",
        &["sedge.toml:2:12: mqtt.username: expected a string, found a number; put it in quotes"],
    );
    check("[mqtt]\nusername = \"\"", &["sedge.toml:2:12: mqtt.username: empty; leave the key out instead"]);
    check(
        "[node]\ngroups = \"plant\"",
        &["sedge.toml:2:10: node.groups: expected a list, found a string; put it in brackets: [\"...\"]"],
    );
    check(
        "[node]\ngroups = [1, \"a\", true]",
        &[
            "sedge.toml:2:11: node.groups[0]: expected a string, found a number; put it in quotes",
            "sedge.toml:2:19: node.groups[2]: expected a string, found true or false; put it in quotes",
        ],
    );
    check("mqtt = 5", &["sedge.toml:1:8: mqtt: expected a section, found a number; write it as [mqtt]"]);
    check(
        "[worker]\nisolate = \"Process\"",
        &["sedge.toml:2:11: worker.isolate: unknown value \"Process\"; did you mean \"process\"?"],
    );
    check("[worker]\ncount = 65", &["sedge.toml:2:9: worker.count: 65 is too large; use at most 64"]);
}

#[test]
fn broken_toml_does_not_hide_the_rest() {
    let (_, found) = inspect("[node]\nname = \n[mqtt]\nurl = \"tcp://a\"\n[mqtt]\n");
    assert!(found[0].starts_with("sedge.toml:2:") && found[0].contains("not TOML"), "{found:?}");
    assert!(found.iter().any(|line| line.starts_with("sedge.toml:4:7: mqtt.url: ")), "{found:?}");
    assert!(found.iter().any(|line| line.starts_with("sedge.toml:5:") && line.contains("not TOML")), "{found:?}");
    assert_eq!(found.iter().filter(|line| line.starts_with("sedge.toml:2:")).count(), 1, "{found:?}");
}

#[test]
fn names_that_become_topics() {
    check(
        "[node]\nname = \"a/b\"",
        &[
            "sedge.toml:2:8: node.name: \"a/b\" contains /, but it becomes one level of topics; use letters, digits, - and _",
        ],
    );
    check(
        "[node]\nname = \"group\"",
        &["sedge.toml:2:8: node.name: \"group\" is a level of Sedge's own topics; choose another name"],
    );
    check("[node]\nname = \"a\\u0000\"", &["sedge.toml:2:8: node.name: topic contains the character \\u{0}"]);
    check(
        "[node]\ngroups = [\"a\", \"b+\", \"a\"]",
        &[
            "sedge.toml:2:16: node.groups[1]: \"b+\" contains +, but it becomes one level of topics; use letters, digits, - and _",
            "sedge.toml:2:22: node.groups[2]: \"a\" is listed twice; remove one",
        ],
    );
    check(
        "[node]\nbase_topic = \"$SYS\"",
        &["sedge.toml:2:14: node.base_topic: \"$SYS\" begins with $; topics with $ belong to the broker"],
    );
    check(
        "[mqtt]\nshare_group = \"a#\"",
        &[
            "sedge.toml:2:15: mqtt.share_group: \"a#\" contains #, but it becomes one level of topics; use letters, digits, - and _",
        ],
    );
    check(
        "[upstream]\nurl = \"mqtt://a\"\ntopic_prefix = \"a/#\"",
        &["sedge.toml:3:16: upstream.topic_prefix: topic name contains a wildcard (+ or #); for example plant-3/"],
    );
}

#[test]
fn addresses() {
    let check_url = |url: &str, expected: &str| {
        let line = format!("sedge.toml:2:7: mqtt.url: {expected}");
        check(&format!("[mqtt]\nurl = \"{url}\""), if expected.is_empty() { vec![] } else { vec![&*line] }.as_slice());
    };
    check_url("mqtt://10.0.0.7", "");
    check_url("mqtts://broker.example:8883", "");
    let check_invalid =
        |url: &str, expected: &str| check_url(url, &format!("invalid address {:?}: {expected}", url.to_owned()));
    check_invalid("tcp://a:1883", "unknown scheme tcp://; write mqtt://");
    check_invalid("http://a", "unknown scheme http://; use one of mqtt://, mqtts://, ws://, wss://");
    check_invalid("mqtt://", "the host is missing; for example mqtt://localhost");
    check_invalid("mqtt://:1883", "the host is missing; for example mqtt://localhost");
    check_invalid("mqtt://a:0", "the port must be a number from 1 to 65535");
    check_invalid("mqtt://a:", "the port must be a number from 1 to 65535");
    check_invalid("mqtt://a:65536", "the port must be a number from 1 to 65535");
    check_invalid("mqtt://a/b", "an MQTT address has no path; remove /b");
    check_invalid("mqtt://::1", "an IPv6 address must stand in brackets; for example [::1]:1883");
    check_invalid("mqtt://[::g]", "no valid IPv6 address between the brackets");
    check_invalid("mqtt://a b", "' ' is not allowed in an address; remove it");
    check_invalid("mqtt://a,b", "',' is not allowed in a host name");
    // The password must not be repeated in a message.
    let expected = "an address must not contain a user name or a password; use username and password_file";
    check_url("mqtt://joe:secret@a", expected);
    check_url("joe:secret@a", expected);
    check(
        "[http]\nlisten = \"localhost\"",
        &[
            "sedge.toml:2:10: http.listen: \"localhost\" is not an address with a port; write for example \"127.0.0.1:9464\", or \"off\"",
        ],
    );
    check(
        "[http]\nlisten = 9464",
        &[
            "sedge.toml:2:10: http.listen: expected an address with its port, such as \"127.0.0.1:9464\", or \"off\", found a number",
        ],
    );
    check(
        "[http]\nlisten = \"0.0.0.0:80\"",
        &[
            "sedge.toml:2:10: warning: http.listen: 0.0.0.0:80 can be reached from other machines, without a password; the page is not there; set cert_file and key_file, for all of it with TLS and tokens, or use 127.0.0.1:80",
        ],
    );
    check("[http]\nlisten = \"0.0.0.0:80\"\ncert_file = \"c\"\nkey_file = \"k\"", &[]);
    check("[http]\nkey_file = \"k\"", &["sedge.toml:2:12: http.key_file: cert_file is missing; TLS needs both files"]);
}

#[test]
fn upstream() {
    check(
        "[upstream]",
        &["sedge.toml:1:1: upstream.url: missing; for example url = \"mqtts://broker.example.com:8883\""],
    );
    check(
        "[upstream]\nurl = \"ftp://a\"",
        &[
            "sedge.toml:2:7: upstream.url: invalid address \"ftp://a\": unknown scheme ftp://; use one of mqtt://, mqtts://, ws://, wss://, http://, https://",
        ],
    );
    check(
        "[upstream]\nurl = \"https://a\"\nusername = \"joe\"",
        &[
            "sedge.toml:3:12: upstream.username: not used by a webhook (http://, https://); remove it; authorization_file holds what a webhook is sent",
        ],
    );
    check(
        "[mqtt]\nclient_id = \"a\"\n[upstream]\nurl = \"mqtt://localhost:1883\"\ntopic_prefix = \"up/\"\nclient_id = \"a\"",
        &[
            "sedge.toml:6:13: upstream.client_id: the same as mqtt.client_id on the same broker, which would end one session for the other; choose another, or leave it out",
        ],
    );
}

#[test]
fn sinks_of_each_type() {
    let sink = |text: &str| {
        let (config, problems) = inspect(text);
        assert_eq!(problems, [""; 0], "in:\n{text}");
        config.sinks.list[0].target.clone()
    };
    let Target::Influx(influx) = sink("[sink.lake]\ntype = \"influx\"\nurl = \"http://a:8086\"\ndatabase = \"plant\"")
    else {
        panic!("another type")
    };
    assert_eq!(influx.api, InfluxApi::V1 { database: "plant".to_owned() });
    let text =
        "[sink.lake]\ntype = \"influx\"\nurl = \"http://a:8086/\"\norg = \"o\"\nbucket = \"b\"\nbatch_records = 50";
    let Target::Influx(influx) = sink(text) else { panic!("another type") };
    assert_eq!(influx.api, InfluxApi::V2 { org: "o".to_owned(), bucket: "b".to_owned() });
    assert_eq!(influx.batch_records.get(), 50);
    let Target::File(file) = sink("[sink.stick]\ntype = \"file\"\npath = \"/media/stick/sedge\"") else {
        panic!("another type")
    };
    assert_eq!((file.path, file.max_file_bytes.get()), (PathBuf::from("/media/stick/sedge"), 16 << 20));
    check(
        "[sink.stick]\ntype = \"file\"\nurl = \"http://a\"\nbucket = \"b\"",
        &[
            "sedge.toml:1:1: sink.stick.path: missing; for example path = \"/media/stick/sedge\"",
            "sedge.toml:3:7: sink.stick.url: not used by a sink of type \"file\", only with type \"mqtt\" or \"webhook\" or \"influx\"; remove it",
            "sedge.toml:4:10: sink.stick.bucket: not used by a sink of type \"file\", only with type \"influx\"; remove it",
        ],
    );
    check(
        "[sink.lake]\ntype = \"influx\"\nurl = \"http://a:8086/write\"",
        &[
            "sedge.toml:1:1: sink.lake.database: missing, and no bucket: nobody knows where the points go; database = \"plant\" for version 1, org and bucket for version 2",
            "sedge.toml:3:7: sink.lake.url: the address of an InfluxDB has no /write; remove it: database, or org and bucket, decide the path",
        ],
    );
}

#[test]
fn mistakes_about_sinks_are_one_sentence_each() {
    let lake = "[sink.lake]\ntype = \"webhook\"\nurl = \"http://a\"\n";
    check(
        &format!("[upstream]\nurl = \"mqtt://a\"\n{}", lake.replace("lake", "upstream")),
        &[
            "sedge.toml:3:1: sink.upstream: [upstream] is the short form of a sink of this name; keep one of both, or give this one another name",
        ],
    );
    check(
        &lake.replace("lake", "local"),
        &[
            "sedge.toml:1:1: sink.local: \"local\" is the local broker, which every board has; give the sink another name",
        ],
    );
    check(
        &format!("{lake}[sinks]\nalerts = [\"lakes\", \"lake\", \"lake\"]\nforwards = [\"local\"]"),
        &[
            "sedge.toml:5:11: sinks.alerts[0]: there is no sink \"lakes\"; did you mean \"lake\"?",
            "sedge.toml:5:28: sinks.alerts[2]: \"lake\" is listed twice; remove one",
            "sedge.toml:6:13: sinks.forwards[0]: \"local\" is not a sink: alerts are published on the local broker anyway; remove it",
        ],
    );
    check(
        &format!("{lake}{}", lake.replace("lake", "pond")),
        &[
            "sedge.toml: sinks.alerts: missing: there are 2 sinks, and none is called upstream; for example alerts = [\"lake\"]",
            "sedge.toml: sinks.forwards: missing: there are 2 sinks, and none is called upstream; for example forwards = [\"lake\"]",
        ],
    );
    let (config, _) =
        inspect(&format!("{lake}max_bytes = 1_000\n[store]\nmax_bytes = 2_000_000\n[upstream]\nurl = \"mqtt://a\""));
    let shares: Vec<_> = config.store.sinks.iter().map(|share| (&*share.name, share.max_bytes)).collect();
    assert_eq!(shares, [("upstream", 1_999_000), ("lake", 1_000)]);
    assert_eq!(
        (config.sinks.alerts, config.sinks.forwards),
        (vec!["upstream".to_owned()], vec!["upstream".to_owned()])
    );
}

#[test]
fn an_upstream_that_is_the_local_broker() {
    let same =
        |upstream: &str| format!("[node]\nname = \"n\"\n[mqtt]\nurl = \"mqtt://localhost\"\n[upstream]\n{upstream}");
    let shared = |at: &str, what: &str| {
        format!(
            "sedge.toml:{at}: upstream.topic_prefix: {what} with sedge/, which on the same broker (mqtt.url) holds this board's \
             own topics: alerts would arrive twice on one topic, and functions could write its status; for example \
             topic_prefix = \"upstream/\""
        )
    };
    for url in ["mqtt://localhost", "mqtt://127.0.0.1:1883", "mqtt://LOCALHOST:1883/", "mqtt://[::1]"] {
        let text = same(&format!("url = {url:?}"));
        check(&text, &[]);
        let up = text.replace("name = \"n\"", "name = \"n\"\nbase_topic = \"up\"");
        let missing = shared("6:1", "missing, and the default begins").replace("with sedge/", "with up/");
        check(&up, &[&missing]);
        check(&format!("{text}\ntopic_prefix = \"up/\""), &[]);
        check(&format!("{text}\ntopic_prefix = \"up\""), &[]);
        for prefix in ["sedge/x", "sed", "sedge"] {
            check(&format!("{text}\ntopic_prefix = {prefix:?}"), &[&shared("7:16", "it begins")]);
        }
        // The board's own topics lie elsewhere.
        check(&text.replace("name = \"n\"", "name = \"n\"\nbase_topic = \"edge\""), &[]);
    }
    for url in ["mqtt://localhost:1884", "mqtts://localhost", "mqtt://elsewhere", "http://localhost:1883"] {
        check(&same(&format!("url = {url:?}")), &[]);
    }
}

#[test]
fn values_that_do_not_go_together() {
    check(
        "[functions]\nquarantine_secs = 100\nquarantine_max_secs = 50",
        &[
            "sedge.toml:2:19: functions.quarantine_secs: the first pause (100) is above quarantine_max_secs (50); lower it, or raise quarantine_max_secs",
        ],
    );
    check(
        "[mqtt]\nmax_payload_bytes = 2000000",
        &[
            "sedge.toml:2:21: mqtt.max_payload_bytes: 2000000 is above max_packet_bytes (1048576), which limits topic and payload together; lower it, or raise max_packet_bytes",
        ],
    );
    check(
        "[mqtt]\nmax_packet_bytes = 100\nmax_payload_bytes = 50",
        &["sedge.toml:2:20: mqtt.max_packet_bytes: 100 is too small; use at least 1024"],
    );
    check(
        "[worker]\nmemory_bytes = 1000",
        &[
            "sedge.toml:2:16: worker.memory_bytes: 1000 is less than state_cache_bytes (4194304), functions.max_memory_bytes (67108864) and the worker itself (16777216); use at least 88080384",
        ],
    );
    check(
        "[store]\nmax_bytes = 1000",
        &[
            "sedge.toml:2:13: warning: store.max_bytes: 1000 may not hold one message of mqtt.max_packet_bytes (1048576); raise it, or lower mqtt.max_packet_bytes",
        ],
    );
    check(
        "[store]\nflash_saver_ms = 90000",
        &["sedge.toml:2:18: store.flash_saver_ms: 90000 is too large; use at most 60000"],
    );
}

#[test]
fn parts_of_messages() {
    check(
        "[trace]\nsample = 2",
        &[
            "sedge.toml:2:10: trace.sample: 2 is not a part of the messages; use a number from 0 (none) to 1 (all): 0.01 for one of a hundred",
        ],
    );
    check("[trace]\nsample = \"0.1\"", &["sedge.toml:2:10: trace.sample: expected a number, found a string"]);
    check(
        "[trace]\notlp = \"http://collector:4318\"",
        &[
            "sedge.toml:2:8: trace.otlp: http://collector:4318 has no path, to which no collector listens; write http://collector:4318/v1/traces",
        ],
    );
    let (config, found) = inspect("[trace]\nsample = 0.25");
    assert!(found.iter().all(|line| !line.contains("trace")) && config.trace.sample == 0.25, "{found:?}");
}

#[test]
fn log_levels() {
    check(
        "[log]\nlevel = \"inof\"",
        &["sedge.toml:2:9: log.level: unknown log level \"inof\"; did you mean \"info\"?"],
    );
    check(
        "[log]\nlevel = \"info,sedge=loud\"",
        &[
            "sedge.toml:2:9: log.level: unknown log level \"sedge=loud\"; use one of [\"error\", \"warn\", \"info\", \"debug\", \"trace\", \"off\"], or levels of parts such as \"info,sedge::mqtt=debug\"",
        ],
    );
    check(
        "[log]\nlevel = \"=info\"",
        &["sedge.toml:2:9: log.level: unknown log level \"=info\"; did you mean \"info\"?"],
    );
}

/// A folder with files that a configuration can name.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(self, name: &str, mode: u32, text: &str) -> Self {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        self
    }

    fn inspect(&self) -> (Config, Vec<String>) {
        let (config, problems) = Config::inspect(&self.0.path().join("sedge.toml"), &machine::testing::MACHINE);
        let root = format!("{}/", self.0.path().display());
        // The host name of the machine that runs the test is not what is tested.
        let lines = problems.iter().map(|problem| problem.to_string().replace(&root, ""));
        (config, lines.filter(|line| !line.contains("the host name is")).collect())
    }

    #[track_caller]
    fn check(&self, expected: &[&str]) {
        assert_eq!(self.inspect().1, expected);
    }
}

const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\n";
const KEY: &str = "-----BEGIN PRIVATE KEY-----\n";

#[test]
fn files_are_found_beside_the_configuration() {
    let text = "[mqtt]\nurl = \"mqtts://a\"\nusername = \"a\"\npassword_file = \"p\"\nca_file = \"c\"\ncert_file = \"c\"\nkey_file = \"sub/k\"";
    let folder = Folder::new().file("sedge.toml", 0o644, text).file("p", 0o600, "secret\n");
    let folder = folder.file("c", 0o644, CERTIFICATE).file("sub/k", 0o640, KEY);
    let (config, found) = folder.inspect();
    assert_eq!(found, [""; 0]);
    assert_eq!(config.mqtt.connection.key_file, Some(folder.0.path().join("sub/k")));
    assert_eq!(config.mqtt.connection.password_file, Some(folder.0.path().join("p")));
}

#[test]
fn files_that_are_wrong() {
    let text = "[mqtt]\nurl = \"mqtts://a\"\npassword_file = \"empty\"\nca_file = \"k\"\ncert_file = \"none\"\nkey_file = \"c\"\n\
                [upstream]\nurl = \"http://a\"\nauthorization_file = \"open\"\nca_file = \"sub\"";
    let folder = Folder::new().file("sedge.toml", 0o644, text).file("empty", 0o600, "\n").file("k", 0o600, KEY);
    let folder = folder.file("c", 0o644, CERTIFICATE).file("open", 0o644, "Bearer x").file("sub/x", 0o644, "");
    folder.check(&[
        "sedge.toml:3:17: mqtt.password_file: empty is empty; write the secret into it",
        "sedge.toml:4:11: mqtt.ca_file: k contains no certificate in PEM; this is a private key: is it the other file?",
        "sedge.toml:5:13: mqtt.cert_file: none cannot be read: No such file or directory (os error 2); create it, or correct the path",
        "sedge.toml:6:12: mqtt.key_file: c contains no private key in PEM; this is a certificate: is it the other file?",
        "sedge.toml:9:22: warning: upstream.authorization_file: open can be read by every user (mode 644); chmod o= open",
        "sedge.toml:10:11: upstream.ca_file: url is not encrypted, so it would not be used; write url as https://..., or remove it",
        "sedge.toml:10:11: upstream.ca_file: sub is not a file; correct the path",
    ]);
}

const PUBLIC_KEY: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA8JhXTyXpizwiitRlfTJi+hDG4/ewwjJpKDG3UhNlVgc=\n-----END PUBLIC KEY-----\n";

#[test]
fn keys_of_deploying() {
    let text = "[deploy.keys.ops]\nfile = \"pub\"\nfunctions = [\"warm-*\"]\ntopics = [\"s/#\"]\nkeys = true";
    let folder = Folder::new().file("sedge.toml", 0o644, text).file("pub", 0o644, PUBLIC_KEY);
    let (config, found) = folder.inspect();
    assert_eq!(found, [""; 0]);
    let key = &config.deploy.keys["ops"];
    assert_eq!(key.public_key, Some(PublicKey::from_pem(PUBLIC_KEY.as_bytes()).unwrap()));
    assert_eq!((&key.functions[..], key.keys), (&["warm-*".to_owned()][..], true));
    assert_eq!(key.topics, ["s/#".parse().unwrap()]);
}

#[test]
fn keys_of_deploying_that_are_wrong() {
    let text = "[deploy.keys]\nfile = \"pub\"\n[deploy.keys.a]\n[deploy.keys.b]\nfile = \"private\"\n[deploy.keys.c]\nfile = \"none\"\n\
                [deploy.keys.d]\nfile = \"cert\"\nfunctions = [\"A\", \"b**\"]\ntopics = [\"a/#/b\"]\n[deploy.keys.e]\nfile = \"pub\"\n\
                [deploy.keys.f]\nfile = \"pub\"\nfunction = []\n[deploy.keys.g]\nfile = \"x25519\"\nkeys = 1";
    let x25519 = PUBLIC_KEY.replace("MCowBQYDK2Vw", "MCowBQYDK2Vu");
    let folder = Folder::new().file("sedge.toml", 0o644, text).file("private", 0o600, KEY);
    let folder = folder.file("cert", 0o644, CERTIFICATE).file("pub", 0o644, PUBLIC_KEY).file("x25519", 0o644, &x25519);
    folder.check(&[
        "sedge.toml:2:8: deploy.keys.file: expected a section, found a string; write it as [deploy.keys.file]",
        "sedge.toml:3:1: deploy.keys.a.file: missing; for example file = \"/etc/sedge/keys/ops.pub.pem\"",
        "sedge.toml:5:8: deploy.keys.b.file: private is a private key, which does not belong on a board; keep it with whoever pushes, and put the public one here: openssl pkey -in private.pem -pubout",
        "sedge.toml:7:8: deploy.keys.c.file: none cannot be read: No such file or directory (os error 2); create it, or correct the path",
        "sedge.toml:9:8: deploy.keys.d.file: cert is a certificate, not a public key; name the file that sedge keygen wrote",
        "sedge.toml:10:14: deploy.keys.d.functions[0]: \"A\" is not a pattern of function names; write a name, or its beginning and *, as in \"threshold-*\"",
        "sedge.toml:10:19: deploy.keys.d.functions[1]: \"b**\" is not a pattern of function names; write a name, or its beginning and *, as in \"threshold-*\"",
        "sedge.toml:11:11: deploy.keys.d.topics[0]: # must be the last level",
        "sedge.toml:15:8: deploy.keys.f.file: the same key as deploy.keys.e; remove one: a key has one set of permissions",
        "sedge.toml:16:1: deploy.keys.f.function: unknown key; did you mean functions?",
        "sedge.toml:18:8: deploy.keys.g.file: x25519 is a public key, but not of Ed25519; make a pair with sedge keygen, and name its .pub.pem",
        "sedge.toml:19:8: deploy.keys.g.keys: expected true or false, found a number",
    ]);
}

#[test]
fn half_an_identity() {
    let folder = Folder::new().file("sedge.toml", 0o644, "[mqtt]\nurl = \"mqtts://a\"\ncert_file = \"c\"");
    folder
        .file("c", 0o644, CERTIFICATE)
        .check(&["sedge.toml:3:13: mqtt.cert_file: key_file is missing; a client certificate needs both files"]);
    let folder = Folder::new().file("sedge.toml", 0o644, "[mqtt]\nurl = \"mqtts://a\"\nkey_file = \"k\"");
    folder
        .file("k", 0o600, KEY)
        .check(&["sedge.toml:3:12: mqtt.key_file: cert_file is missing; a client certificate needs both files"]);
}

#[test]
fn a_fifo_does_not_block_the_check() {
    let folder = Folder::new().file("sedge.toml", 0o644, "[mqtt]\npassword_file = \"/dev/null\"");
    folder.check(&["sedge.toml:2:17: mqtt.password_file: /dev/null is not a file; correct the path"]);
}

#[test]
fn variables_in_paths() {
    let expected = "sedge.toml:2:17: mqtt.password_file: unknown variable; only ${CREDENTIALS_DIRECTORY} is expanded, at the start";
    check("[mqtt]\npassword_file = \"${HOME}/p\"", &[expected]);
    check(
        "[mqtt]\npassword_file = \"~/p\"",
        &["sedge.toml:2:17: mqtt.password_file: ~ is not expanded; write the whole path"],
    );
}

#[test]
fn a_configuration_that_is_not_there() {
    Folder::new().check(&["sedge.toml: cannot be read: No such file or directory (os error 2); name the configuration with --config FILE or SEDGE_CONFIG"]);
}

#[test]
fn conf_d_is_laid_over_in_the_order_of_names() {
    let folder = Folder::new()
        .file("sedge.toml", 0o644, "[node]\nname = \"main\"\n[mqtt]\nkeep_alive_secs = 5\nreceive_maximum = 7")
        .file("conf.d/20-late.toml", 0o644, "[mqtt]\nkeep_alive_secs = 9\nrecieve_maximum = 1")
        .file("conf.d/10-early.toml", 0o644, "mqtt.keep_alive_secs = 8\nnode.name = \"a/b\"")
        .file("conf.d/ignored.toml.bak", 0o644, "nonsense");
    folder.check(&[
        "conf.d/10-early.toml:2:13: node.name: \"a/b\" contains /, but it becomes one level of topics; use letters, digits, - and _",
        "conf.d/20-late.toml:3:1: mqtt.recieve_maximum: unknown key; did you mean receive_maximum?",
    ]);
    let (config, _) = folder.inspect();
    assert_eq!((config.mqtt.keep_alive_secs.get(), config.mqtt.receive_maximum.get()), (9, 7));
}

#[test]
fn folders_of_functions() {
    let manifest = |name: &str| format!("name = \"{name}\"\nversion = \"1\"\nsubscribe = [\"a\"]");
    let folder = Folder::new()
        .file(
            "sedge.toml",
            0o644,
            "[functions]\npaths = [\n\"good\",\n\"none\",\n\"many\",\n\"good\",\n\"twin\",\n\"bad\"]",
        )
        .file("good/function.toml", 0o644, &manifest("good"))
        .file("many/b/function.toml", 0o644, &manifest("b"))
        .file("twin/function.toml", 0o644, &manifest("good"))
        .file("bad/function.toml", 0o644, "name = \"Bad\"");
    let (config, found) = folder.inspect();
    let root = folder.0.path().display();
    assert_eq!(
        found,
        [
            "sedge.toml:4:1: functions.paths[1]: there is no folder none; create it, or correct the path",
            "sedge.toml:5:1: functions.paths[2]: many contains no function.toml; list each function, for example \"many/b\"",
            "sedge.toml:6:1: functions.paths[3]: good is listed twice; remove one",
        ]
    );
    let (loaded, problems) = config.functions.load(&config.sinks, &machine::testing::MACHINE);
    assert_eq!(
        loaded.iter().map(|(dir, m)| (dir.clone(), &*m.name)).collect::<Vec<_>>(),
        [(folder.0.path().join("good"), "good")]
    );
    let lines: Vec<String> = problems.iter().map(|problem| problem.to_string()).collect();
    assert_eq!(
        lines[0],
        format!(
            "{root}/twin/function.toml: name: \"good\" is also the name of {root}/good; give each function its own name"
        )
    );
    assert!(lines[1..].iter().all(|line| line.starts_with(&format!("{root}/bad/function.toml"))), "{lines:?}");
}

proptest::proptest! {
    /// Fragments of TOML in any order reach the readers more often than random text.
    #[test]
    fn no_text_makes_it_panic(
        pieces in proptest::collection::vec(proptest::sample::select(vec![
            "[mqtt]\n", "[node]\n", "[upstream]\n", "url", "name", "groups", "listen", "subscribe", " = ", "\"", "\"ä\"\n",
            "\"mqtt://\"\n", "[", "]", "{", "}", "\n", "1\n", "-1\n", "1e9\n", "0x", ".", ",", "true\n", "\0", "\u{feff}",
            "1979-05-27\n", "#", "'''", "\\u{d800}",
        ]), 0..30),
    ) {
        let text = pieces.concat();
        let (_, problems) = Config::parse(&text, Path::new("sedge.toml"));
        let lines = text.split('\n').count() as u32;
        proptest::prop_assert!(problems.iter().all(|problem| problem.at.line <= lines));
        let _ = crate::manifest::Manifest::from_toml(&text, Path::new("function.toml"), None);
        let _ = crate::manifest::Manifest::from_json(text.as_bytes(), None);
    }
}

/// One key as the annotated file shows it.
struct Shown {
    key: String,
    value: String,
    why: String,
    is_example: bool,
}

/// Reads `sedge.toml` as a person does. Comments before the first section are about the file.
fn shown() -> Vec<Shown> {
    let (mut section, mut why, mut shown) = (String::new(), String::new(), Vec::new());
    for line in ANNOTATED.lines() {
        let plain = line.strip_prefix('#').unwrap_or(line);
        if let Some(name) = plain.strip_prefix('[') {
            (section, why) = (name.split(']').next().unwrap().to_owned(), String::new());
        } else if let Some(text) = line.strip_prefix("# ") {
            why = format!("{why} {text}").trim().to_owned();
        } else if let Some((key, value)) = plain.split_once(" = ") {
            let (value, is_example) = value.split_once("# example").map_or((value, false), |(value, _)| (value, true));
            let key = format!("{section}.{key}");
            shown.push(Shown { key, value: value.trim().into(), why: std::mem::take(&mut why), is_example });
        } else {
            why.clear();
        }
    }
    shown
}

/// The annotated file with its keys in force.
fn uncommented(with_examples: bool) -> String {
    let keep =
        |line: &&str| with_examples || !line.contains("# example") || line.starts_with("#url = \"mqtts://broker");
    let bare = |line: &str| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => rest.to_owned(),
        _ => line.to_owned(),
    };
    ANNOTATED.lines().filter(keep).map(bare).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_annotated_file_works_as_it_is() {
    let (config, found) = inspect(ANNOTATED);
    assert_eq!(found, [""; 0]);
    assert_eq!(config, Config::new(Node::new("board")));
}

#[test]
fn the_annotated_file_shows_every_key_once_and_in_order() {
    let keys: Vec<String> = shown().into_iter().map(|shown| shown.key).collect();
    let mut known = sections::read(&Table::empty(Path::new("")), "board".into(), u64::MAX).1.keys;
    // Sections have none of their own.
    let sections = [
        "deploy.keys",
        "deploy.keys.ops",
        "functions.settings",
        "http_trigger.signatures",
        "http_trigger.signatures.github",
        "http_trigger.tokens",
        "http_trigger.tokens.meters",
        "functions.settings.threshold-alert",
        "sink.lake",
        "sink.lake.headers",
        "sink.lake.headers.X-API-Key",
        "upstream.headers",
        "upstream.headers.X-API-Key",
    ];
    known.retain(|key| key.contains('.') && !sections.contains(&&**key));
    assert_eq!(keys, known);
    assert!(
        shown().iter().all(|shown| shown.why.ends_with('.') || shown.why.ends_with(".\".")),
        "a key lacks its line of why"
    );
}

#[test]
fn the_annotated_file_shows_the_defaults() {
    let (mut config, found) = inspect(&uncommented(false));
    assert_eq!(found, [""; 0]);
    let [sink] = &std::mem::take(&mut config.sinks).list[..] else { panic!("one sink") };
    let upstream = Upstream::new("mqtts://broker.example.com:8883".parse().unwrap(), "board");
    assert_eq!(*sink, Sink::upstream(upstream));
    config.store.sinks.clear();
    assert_eq!(config, Config::new(Node::new("board")));
}

#[test]
fn the_examples_of_the_annotated_file_are_good() {
    let (_, found) = inspect(&uncommented(true));
    // It cannot be a webhook and a broker at once, and this is not started by systemd.
    let texts = [
        "_file: ",
        ".file: ",
        "is not encrypted",
        "CREDENTIALS_DIRECTORY",
        "only used by webhooks",
        "either value or file",
        "not used by a webhook",
        "says it too",
        "not used by a sink of type",
    ];
    let expected = |line: &&String| texts.iter().any(|it| line.contains(it));
    assert_eq!(found.iter().filter(|line| !expected(line)).collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn the_example_of_the_reference_is_good() {
    let text = include_str!("reference.md").split("```").nth(1).unwrap().trim_start_matches("toml");
    let (config, found) = inspect(text);
    assert!(
        found.iter().all(|line| line.contains("functions.paths[0]") || line.contains("password_file")),
        "{found:?}"
    );
    assert_eq!((&*config.node.name, config.upstream().is_some()), ("cold-room-2", true));
}

/// `docs/configuration.md` is made from the annotated file: `SEDGE_WRITE_DOCS=1 cargo test reference` writes it.
#[test]
fn the_reference_is_in_step() {
    let mut text = String::from(include_str!("reference.md"));
    let mut section = "";
    let shown = shown();
    for shown in &shown {
        let (of, key) = shown.key.split_once('.').unwrap();
        if of != section {
            section = of;
            text.push_str(&format!("\n## [{section}]\n\n| key | default | |\n|---|---|---|\n"));
        }
        let default = if shown.is_example { "".into() } else { format!("`{}`", shown.value) };
        let example = if shown.is_example { format!(" For example `{}`.", shown.value) } else { String::new() };
        let why = shown.why.replace('|', "\\|").replace('<', "&lt;");
        text.push_str(&format!("| `{key}` | {default} | {why}{example} |\n"));
    }
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    if std::env::var_os("SEDGE_WRITE_DOCS").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == text,
        "docs/configuration.md is not in step with sedge.toml: run SEDGE_WRITE_DOCS=1 cargo test reference"
    );
}

/// The problems on a machine with so much memory for the service.
fn problems_with(memory_bytes: u64, text: &str) -> Vec<String> {
    let (table, problems) = Table::from_toml(text, Path::new("sedge.toml"));
    assert!(problems.is_empty(), "{problems:?}");
    let (_, reader) = sections::read(&table, "board".to_owned(), memory_bytes);
    reader.problems.iter().map(|problem| problem.to_string()).collect()
}

#[test]
fn a_budget_that_cannot_hold_one_message_is_refused_with_the_sum() {
    let text = "[functions]\nmemory_budget_bytes = 6_000_000\nmax_output_bytes = 4_000_000";
    let problems = problems_with(1 << 30, text);
    assert_eq!(problems.len(), 1, "{problems:#?}");
    for part in [
        "sedge.toml:2:23: functions.memory_budget_bytes: 6000000 is less than one message may hold: ",
        "for mqtt.max_payload_bytes (262144), twice max_output_bytes (4000000), max_outputs (1000) and max_state_bytes \
         (1048576)",
        "raise it, or lower one of those",
    ] {
        assert!(problems[0].contains(part), "{part}: {problems:#?}");
    }
    assert_eq!(problems_with(1 << 30, &text.replace("6_000_000", "16_000_000")), [""; 0]);
}

#[test]
fn limits_above_the_memory_of_the_service_are_refused_with_the_sum() {
    let text = "[functions]\nmemory_budget_bytes = 50_000_000\n[worker]\ncount = 2\nstate_cache_bytes = 4_000_000";
    let sum = 50_000_000 + 2 * 4_000_000 + (16 << 20);
    let expected = format!(
        "sedge.toml:5:21: worker.state_cache_bytes: functions.memory_budget_bytes (50000000), 2 times state_cache_bytes \
         (4000000) and the daemon itself (16777216) are {sum} bytes; this service may use {}; lower one of them, or raise \
         MemoryMax= of the unit",
        sum - 1
    );
    assert_eq!(problems_with(sum - 1, text), [expected]);
    assert_eq!(problems_with(sum, text), [""; 0]);
}

#[test]
fn the_bound_of_state_holds_one_scope_at_least() {
    let expected = "sedge.toml:2:19: store.state_max_bytes: 1048576 is less than one scope may count: 1049120, for \
                    functions.max_state_bytes (1048576) and what a scope takes beside; use at least 1049120, or lower \
                    max_state_bytes";
    check("[store]\nstate_max_bytes = 1_048_576", &[expected]);
    check("[store]\nstate_max_bytes = 1_049_120", &[]);
}

mod settings;

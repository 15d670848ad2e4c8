//! Good manifests, a corpus of mistakes, and the canonical JSON.

use std::fs;

use super::*;

const WHOLE: &str = r#"
    name = "threshold-alert"
    version = "1.2.0"
    serial = 7
    subscribe = ["sensors/+/temperature", "zigbee2mqtt/#"]
    except = ["zigbee2mqtt/bridge/#"]
    state = "topic"
    every = "90s"
    component = "threshold.wasm"
    [allow]
    publish = ["derived/#"]
    clock = true
    [limits]
    fuel = 20_000_000
    timeout_ms = 50
    memory_bytes = 1_048_576
    outputs = 8
    output_bytes = 1_024
    state_bytes = 2_048
    [trial]
    mode = "shadow"
    messages = 100
    secs = 3_600
    differences = 2
    [config]
    max = 80
    factor = 1.50
    strict = true
    unit = "°C"
"#;

const SMALL: &str = "name = \"a\"\nversion = \"1\"\nsubscribe = [\"a\"]\n";

fn parse(text: &str) -> Result<Manifest, Problems> {
    Manifest::from_toml(text, Path::new("function.toml"), Some(&Ceilings::default()))
}

/// Expects these problems and no others.
#[track_caller]
fn check(text: &str, expected: &[&str]) {
    let found = parse(text).map_or_else(|problems| problems.iter().map(ToString::to_string).collect(), |_| vec![]);
    assert_eq!(found, expected, "in:\n{text}");
}

/// The same, in a manifest that is good otherwise. Its own lines begin with 4.
#[track_caller]
fn check_added(lines: &str, expected: &[&str]) {
    check(&format!("{SMALL}{lines}"), expected);
}

#[test]
fn everything_is_read() {
    let manifest = parse(WHOLE).unwrap();
    assert_eq!((&*manifest.name, &*manifest.version, manifest.serial), ("threshold-alert", "1.2.0", 7));
    assert_eq!(
        manifest.subscribe.iter().map(TopicFilter::as_str).collect::<Vec<_>>(),
        ["sensors/+/temperature", "zigbee2mqtt/#"]
    );
    assert_eq!(manifest.except, ["zigbee2mqtt/bridge/#".parse().unwrap()]);
    assert_eq!((manifest.state, manifest.every), (StateScope::Topic, Some(Duration::from_secs(90))));
    assert_eq!(manifest.component.as_deref(), Some("threshold.wasm"));
    assert_eq!((manifest.allow.clock, manifest.allow.random), (true, false));
    assert_eq!(manifest.allow.publish, ["derived/#".parse().unwrap()]);
    assert_eq!((manifest.limits.fuel.get(), manifest.limits.outputs), (20_000_000, 8));
    assert_eq!((manifest.limits.output_bytes, manifest.limits.state_bytes), (1_024, 2_048));
    assert_eq!((manifest.trial.mode, manifest.trial.messages.get()), (TrialMode::Shadow, 100));
    assert_eq!((manifest.trial.secs.get(), manifest.trial.differences), (3_600, Some(2)));
    let config: Vec<(&str, &str)> = manifest.config.iter().map(|(key, value)| (&**key, &**value)).collect();
    assert_eq!(config, [("factor", "1.50"), ("max", "80"), ("strict", "true"), ("unit", "°C")]);
}

#[test]
fn defaults_are_the_documented_ones() {
    let manifest = parse(SMALL).unwrap();
    assert_eq!((manifest.serial, manifest.state, manifest.every), (0, StateScope::None, None));
    assert_eq!((manifest.allow, manifest.limits.timeout_ms.get()), (Allow::default(), 100));
    assert_eq!((manifest.trial.mode, manifest.trial.messages.get()), (TrialMode::Live, 10));
    let timer = parse("name = \"t\"\nversion = \"1\"\nevery = \"100ms\"").unwrap();
    assert_eq!((timer.subscribe, timer.every), (vec![], Some(Duration::from_millis(100))));
}

#[test]
fn json_is_the_same_manifest_and_canonical() {
    for text in [WHOLE, SMALL] {
        let manifest = parse(text).unwrap();
        let json = manifest.to_json();
        let again = Manifest::from_json(&json, Some(&Ceilings::default())).unwrap();
        assert_eq!(manifest, again);
        assert_eq!(json, again.to_json());
    }
    assert_eq!(
        String::from_utf8(parse(SMALL).unwrap().to_json()).unwrap(),
        r#"{"name":"a","version":"1","serial":0,"subscribe":["a"],"state":"none","allow":{"publish":[],"clock":false,"random":false},"limits":{"fuel":10000000,"timeout_ms":100,"memory_bytes":4194304,"outputs":64,"output_bytes":65536,"state_bytes":65536},"trial":{"mode":"live","messages":10,"secs":60,"failures":0},"config":{}}"#
    );
}

#[test]
fn wrong_json() {
    let check = |json: &str, expected: &str| {
        let problems = Manifest::from_json(json.as_bytes(), None).unwrap_err().to_string();
        assert!(problems.contains(expected), "{json}: {problems}");
    };
    check("", "not JSON");
    check("[]", "expected an object, found a list");
    check(r#"{"name":"a","name":"b"}"#, "key \"name\" is listed twice");
    check(r#"{"name":"a","version":"1","every":"1s","config":{"x":null}}"#, "config.x: expected a string, a number");
    check(r#"{"name":"a","version":"1","every":"1s","extra":1}"#, "extra: unknown key");
    check(&"[".repeat(10_000), "not JSON");
}

#[test]
fn all_problems_at_once() {
    check(
        "name = \"Threshold\"\nserial = -1\nsubscribe = [\"a/#/b\", \"$share/g/a\"]\nstate = \"topics\"\n[limit]\nfuel = 1\n",
        &[
            "function.toml: version: missing; for example version = \"1.0.0\"",
            "function.toml:1:8: name: \"Threshold\" is not a function name; use 1 to 64 of a-z, 0-9 and -",
            "function.toml:2:10: serial: -1 is too small; use at least 0",
            "function.toml:3:14: subscribe[0]: # must be the last level",
            "function.toml:3:23: subscribe[1]: $share/ subscriptions are set with mqtt.share_group",
            "function.toml:4:9: state: unknown value \"topics\"; did you mean \"topic\"?",
            "function.toml:5:2: limit: unknown key; did you mean limits?",
        ],
    );
}

#[test]
fn a_function_that_would_never_run() {
    let start = "name = \"a\"\nversion = \"1\"\n";
    check(
        start,
        &[
            "function.toml: subscribe: missing, and no every, at or http: the function would never run; for example subscribe = [\"sensors/+/temperature\"]",
        ],
    );
    check(
        &format!("{start}subscribe = []"),
        &[
            "function.toml:3:13: subscribe: empty, and no every, at or http: the function would never run; name a topic filter",
        ],
    );
}

#[test]
fn feedback_loops_name_both_filters() {
    check_added(
        "[allow]\npublish = [\"b\", \"+\"]",
        &[
            "function.toml:5:17: allow.publish[1]: feedback loop: publish + can match subscribe a; publish to topics that this function does not subscribe to",
        ],
    );
    check(
        "name = \"a\"\nversion = \"1\"\nsubscribe = [\"x/+/t\", \"y\"]\nallow.publish = [\"x/#\"]",
        &[
            "function.toml:4:18: allow.publish[0]: feedback loop: publish x/# can match subscribe x/+/t; publish to topics that this function does not subscribe to",
        ],
    );
}

#[test]
fn an_excluded_topic_is_not_a_feedback_loop() {
    let text = "name = \"a\"\nversion = \"1\"\nsubscribe = [\"z/#\"]\nexcept = [\"z/+/set\"]\nallow.publish = [\"z/lamp/set\"]";
    assert!(parse(text).is_ok());
    check(
        &text.replace("z/lamp/set", "z/#"),
        &[
            "function.toml:5:18: allow.publish[0]: feedback loop: publish z/# can match subscribe z/#; publish to topics that this function does not subscribe to",
        ],
    );
}

#[test]
fn single_mistakes() {
    check_added(
        "except = [\"b/#\", \"#\"]",
        &[
            "function.toml:4:11: except[0]: b/# excludes nothing that subscribe has; correct or remove it",
            "function.toml:4:18: except[1]: # excludes everything that a has; remove that from subscribe, or exclude less",
        ],
    );
    check_added("except = [\"a/#/y\"]", &["function.toml:4:11: except[0]: # must be the last level"]);
    check(
        "name = \"a\"\nversion = \"1\"\nsubscribe = [\"a/#\"]\nexcept = [\"a/b\", \"a/b\"]",
        &["function.toml:4:18: except[1]: a/b is listed twice; remove one"],
    );
    check_added(
        "every = 10",
        &["function.toml:4:9: every: expected a time with its unit, such as \"10s\", found a number"],
    );
    check_added(
        "every = \"10\"",
        &[
            "function.toml:4:9: every: \"10\" is not a time; write a whole number and ms, s, m or h: \"500ms\", \"10s\", \"5m\", \"1h\"",
        ],
    );
    check_added(
        "every = \"99ms\"",
        &["function.toml:4:9: every: \"99ms\" is out of range; use 100ms or more, and 366 days or less"],
    );
    check_added(
        "every = \"18446744073709551615h\"",
        &[
            "function.toml:4:9: every: \"18446744073709551615h\" is not a time; write a whole number and ms, s, m or h: \"500ms\", \"10s\", \"5m\", \"1h\"",
        ],
    );
    check_added("component = \"../other/x.wasm\"", &[]);
    for file in ["/x.wasm", "..", "a/../x.wasm"] {
        check_added(
            &format!("component = {file:?}"),
            &[&format!(
                "function.toml:4:13: component: {file:?} is not a file in this folder or relative to it; for example component = \
                 \"function.wasm\" or \"../threshold/threshold.wasm\""
            )],
        );
    }
    check_added("[limits]\ntimeout = 5", &["function.toml:5:1: limits.timeout: unknown key; did you mean timeout_ms?"]);
    check_added(
        "[limits]\nmemory_bytes = 1000",
        &[
            "function.toml:5:16: limits.memory_bytes: 1000 is less than one page of WebAssembly memory; use at least 65536",
        ],
    );
    check_added(
        "[limits]\ntimeout_ms = 60_000\nfuel = 0",
        &[
            "function.toml:5:14: limits.timeout_ms: 60000 is above functions.max_timeout_ms of this board (1000); lower it here, or raise that in the configuration",
            "function.toml:6:8: limits.fuel: 0 is too small; use at least 1",
        ],
    );
    check_added(
        "[trial]\nmode = \"Shadow\"\nmessages = 0",
        &[
            "function.toml:5:8: trial.mode: unknown value \"Shadow\"; did you mean \"shadow\"?",
            "function.toml:6:12: trial.messages: 0 is too small; use at least 1",
        ],
    );
    check_added(
        "[trial]\nmessages = 3\nfailures = 3\ndifferences = 1",
        &[
            "function.toml:6:12: trial.failures: 3 of 3 messages may fail, so that every trial passes; lower it, or raise messages",
            "function.toml:7:15: trial.differences: only a shadow is compared with the previous version; set mode = \"shadow\", or remove it",
        ],
    );
    check_added(
        "[allow]\nclock = \"true\"",
        &["function.toml:5:9: allow.clock: expected true or false, found a string; write it without quotes"],
    );
    check_added(
        "[config]\na = 2026-01-01\nb = [1, inf]\nc = [[2026-01-01]]\n",
        &[
            "function.toml:5:5: config.a: expected a string, a number, true, false, a list or a section, found a date",
            "function.toml:6:9: config.b[1]: inf cannot be in a list, which functions read as JSON; write a finite number",
            "function.toml:7:7: config.c[0][0]: expected a string, a number, true, false, a list or a section, found a date",
        ],
    );
    check_added(
        "[config]\n\"oven.max\" = 1\n[config.oven]\nmax = 2",
        &["function.toml:7:7: config.oven.max: set twice: as a name with dots and in a section; remove one"],
    );
    check(
        "name = \"a\"\nversion = \"1 beta\"\nsubscribe = [\"a\", \"a\", \"$timer/x\"]",
        &[
            "function.toml:2:11: version: \"1 beta\" is not a version; use 1 to 64 letters, digits, dots, - and +, as in 1.2.0",
            "function.toml:3:19: subscribe[1]: a is listed twice; remove one",
            "function.toml:3:24: subscribe[2]: $timer topics never come from the broker; use every = \"10s\" for a timer",
        ],
    );
}

#[test]
fn sections_of_settings_are_names_with_dots_and_lists_are_json() {
    let text = format!(
        "{SMALL}[config]\nmax = 80\nsensors = [\"a,b\", \"ü \\\"c\\\"\"]\nlevels = [ 1, -2.50, +1e6, true, [\"x\"], {{ n = 1 }} ]\n\
         none = []\nkiln = {{ max = 900, zones.top = \"z\" }}\n[config.oven]\nmax = 240\n\"min.a\" = 1_0\n[config.oven.door]\nopen = false\n\
         [config.empty]\n"
    );
    let manifest = parse(&text).unwrap();
    let config: Vec<(&str, &str)> = manifest.config.iter().map(|(key, value)| (&**key, &**value)).collect();
    assert_eq!(
        config,
        [
            ("kiln.max", "900"),
            ("kiln.zones.top", "z"),
            ("levels", r#"[1,-2.50,1e6,true,["x"],{"n":1}]"#),
            ("max", "80"),
            ("none", "[]"),
            ("oven.door.open", "false"),
            ("oven.max", "240"),
            ("oven.min.a", "10"),
            ("sensors", r#"["a,b","ü \"c\""]"#),
        ]
    );
    let json = manifest.to_json();
    assert_eq!(Manifest::from_json(&json, None).unwrap(), manifest);
    let nested = r#"{"name":"a","version":"1","every":"1s","config":{"oven":{"max":80},"list":[1,"b"]}}"#;
    let config = Manifest::from_json(nested.as_bytes(), None).unwrap().config;
    assert_eq!((&*config["oven.max"], &*config["list"]), ("80", "[1,\"b\"]"));
}

#[test]
fn subscriptions_are_bounded() {
    let text = |count: usize| {
        let filters: Vec<String> = (0..count).map(|n| format!("\"t/{n}\"")).collect();
        format!("name = \"a\"\nversion = \"1\"\nsubscribe = [{}]", filters.join(", "))
    };
    assert!(parse(&text(64)).is_ok());
    check(
        &text(65),
        &["function.toml:3:13: subscribe: 65 filters, the limit is 64; use wildcards, or split the function"],
    );
}

#[test]
fn limits_are_held_against_the_board_only_where_there_is_one() {
    let text = format!("{SMALL}[limits]\ntimeout_ms = 60_000");
    assert!(parse(&text).is_err());
    assert!(Manifest::from_toml(&text, Path::new("function.toml"), None).is_ok());
}

#[test]
fn periods_come_back_as_they_were_written() {
    for text in ["100ms", "1500ms", "10s", "90s", "5m", "1h", "8784h"] {
        assert_eq!(format_period(parse_period(text).unwrap()), text);
    }
    for text in ["", "s", "-1s", "1.5s", "10 s", "+1s", "1d", "１s"] {
        assert_eq!(parse_period(text), None, "{text:?}");
    }
}

#[test]
fn loads_from_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Manifest::load(dir.path(), &crate::config::machine::testing::MACHINE).unwrap_err().to_string();
    assert!(missing.contains("function.toml: cannot be read"), "{missing}");
    fs::write(dir.path().join(FILE_NAME), WHOLE).unwrap();
    assert_eq!(Manifest::load(dir.path(), &crate::config::machine::testing::MACHINE).unwrap(), parse(WHOLE).unwrap());
}

#[test]
fn what_is_for_the_build_is_not_sent() {
    let manifest = parse(&format!("{SMALL}[build]\nstack_bytes = 65_536\ntarget = \"wasm32-wasip2\"\n")).unwrap();
    assert_eq!((manifest.build.stack_bytes, manifest.build.target.name()), (65_536, "wasm32-wasip2"));
    assert_eq!(manifest.to_json(), parse(SMALL).unwrap().to_json());
    for bad in ["0", "100", "16_385", "2_000_000"] {
        let problems = parse(&format!("{SMALL}[build]\nstack_bytes = {bad}\n")).unwrap_err();
        assert!(problems.iter().any(|it| it.to_string().contains("build.stack_bytes")), "{bad}");
    }
}

#[test]
fn all_state_of_a_function_can_be_bounded() {
    let toml = |more: &str| format!("name = \"a\"\nversion = \"1\"\nsubscribe = [\"t\"]\n{more}");
    let read = |more: &str| Manifest::from_toml(&toml(more), Path::new("function.toml"), None);
    let manifest =
        read("state = \"topic\"\nstate_full = \"forget-oldest\"\nlimits.state_total_bytes = 100_000").unwrap();
    assert_eq!(manifest.state_full, StateFull::ForgetOldest);
    assert_eq!(manifest.limits.state_total_bytes.map(NonZeroU64::get), Some(100_000));
    let json = manifest.to_json();
    assert_eq!(Manifest::from_json(&json, None).unwrap(), manifest);
    // What is not set is not signed: boards of earlier versions take it.
    let plain = String::from_utf8(read("state = \"topic\"").unwrap().to_json()).unwrap();
    assert!(!plain.contains("state_full") && !plain.contains("state_total_bytes"), "{plain}");

    let problem = |more: &str| read(more).unwrap_err().to_string();
    let small = problem("state = \"topic\"\nlimits.state_total_bytes = 66_079");
    assert!(small.contains("66079 is less than one scope may count: 66080, for limits.state_bytes (65536)"), "{small}");
    assert!(problem("limits.state_total_bytes = 100_000").contains("the function has no state"));
    assert!(problem("state_full = \"forget-oldest\"").contains("no state that could be forgotten"));
    assert!(problem("state = \"function\"\nstate_full = \"forget-oldest\"").contains("all topics share one state"));
}

#[test]
fn silence_is_read_with_the_topics_that_are_expected() {
    let read = |lines: &str| {
        let text = format!("name = \"a\"\nversion = \"1\"\nsubscribe = [\"s/+/t\"]\n[silence]\n{lines}");
        Manifest::from_toml(&text, Path::new("function.toml"), None).map_err(|problems| problems.to_string())
    };
    let manifest =
        read("after = \"10m\"\nback = true\nexpect = [\"s/{name}/t\", \"s/x/t\"]\nnames = [\"f1\", \"f2\"]").unwrap();
    let silence = manifest.silence.as_ref().unwrap();
    assert_eq!((silence.after.as_secs(), silence.back, silence.max_topics.get()), (600, true, 10_000));
    assert_eq!(silence.expected().collect::<Vec<_>>(), ["s/f1/t", "s/f2/t", "s/x/t"]);
    assert_eq!(Manifest::from_json(&manifest.to_json(), None).unwrap(), manifest);
    for (lines, said) in [
        ("back = true", "for example after = \"10m\""),
        ("after = \"500ms\"", "shorter than a second; use 1s or more"),
        ("after = \"9000h\"", "\"9000h\" is out of range; use 100ms or more, and 366 days or less"),
        ("after = \"ten\"", "ten"),
        ("after = \"1m\"\nmax_topics = 200_000", "more than 100000 topics"),
        ("after = \"1m\"\nmax_topics = 0", "max_topics"),
        ("after = \"1m\"\nbakc = true", "did you mean back?"),
        ("after = \"1m\"\nexpect = [\"s/{name}/t\"]", "one of both is missing"),
        ("after = \"1m\"\nnames = [\"f1\"]", "one of both is missing"),
        ("after = \"1m\"\nexpect = [\"s/f1\"]", "s/f1 is not heard, so it would always be silent"),
        ("after = \"1m\"\nexpect = [\"s/+/t\"]", "is not a topic"),
        (
            "after = \"1m\"\nexpect = [\"s/{name}/t\"]\nnames = [\"a\", \"b\"]\nmax_topics = 1",
            "2 topics are expected, the limit is 1",
        ),
    ] {
        let problems = read(lines).unwrap_err();
        assert!(problems.contains(said) && problems.lines().count() == 1, "{lines}: {problems}");
    }
    let timer = Manifest::from_toml(
        "name = \"a\"\nversion = \"1\"\nevery = \"1m\"\n[silence]\nafter = \"1m\"",
        Path::new("function.toml"),
        None,
    );
    assert!(timer.unwrap_err().to_string().contains("hears no topic that could be silent"));
}

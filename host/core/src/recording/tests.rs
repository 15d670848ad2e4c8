use ::bytes::Bytes;

use super::*;
use crate::message::{
    Alert, AlertStatus, Failure, Output, Publication, Severity, StateGrowth, StateWrite, Usage, Verdict,
};
use crate::settings::Setting;

fn message() -> Message {
    Message {
        topic: "line\"s/é/🦀".into(),
        payload: Bytes::from_static(&[0, 255, b'a']),
        content_type: Some("application/cbor".into()),
        properties: vec![("id".into(), "7\n".into())],
        received_at_ms: 1_767_225_600_000,
        clock_synced: false,
        attempt: 3,
        retained: true,
        response_topic: Some("answers/7".into()),
        correlation_data: Some(b"base64:no".as_slice().into()),
        trace: None,
    }
}

fn outcome(verdict: Verdict) -> Outcome {
    let write =
        |key: &str, value: Option<&'static [u8]>| StateWrite { key: key.into(), value: value.map(Bytes::from_static) };
    let writes = vec![write("b", None), write("a", Some(&[1, 2, 200]))];
    let usage = Usage { fuel: 2103, elapsed_us: 6, memory_bytes: 65_536, output_bytes: 10 };
    Outcome { verdict, writes, growth: StateGrowth::default(), usage, drawn: None }
}

fn line(outcome: &Outcome) -> String {
    let mut lines = Vec::new();
    outcome_of(outcome, &mut lines);
    String::from_utf8(lines).unwrap()
}

fn alert() -> Output {
    Output::Alert(Alert {
        key: "oven".into(),
        severity: Severity::Warning,
        status: AlertStatus::Firing,
        summary: "hot".into(),
        value: Some(0.1),
        labels: Vec::new(),
        sink: None,
    })
}

#[test]
fn a_message_is_read_as_it_was_written() {
    for message in [message(), Message::new("a", Bytes::from_static(b"21.5"), 5, true)] {
        let mut lines = Vec::new();
        let run = RecordedRun {
            version: None,
            state: None,
            message: &message,
            drawn: None,
            is_unsure: false,
            refused: None,
            outcome: &outcome(Verdict::Done(Vec::new())),
        };
        append_run(&run, &mut lines);
        let first = lines.split(|byte| *byte == b'\n').next().unwrap();
        let Line::Message(read) = serde_json::from_slice(first).unwrap() else { panic!("a message") };
        assert_eq!(read.into_message(), message);
    }
}

#[test]
fn bytes_that_are_text_stay_readable_and_all_others_come_back() {
    let written = |bytes: &[u8]| serde_json::to_string(&Data::of(bytes)).unwrap();
    assert_eq!(written(b"81.5"), "\"81.5\"");
    assert_eq!(written(&[0xff, 0]), "\"base64:/wA=\"");
    for bytes in [&b""[..], b"81.5", b"base64:", b"base64:AAA=", b"\"\\\n", &[0xff, 0, 7]] {
        let text = written(bytes);
        let data: Data<'_> = serde_json::from_str(&text).unwrap();
        assert_eq!(&*data.0, bytes, "{text}");
    }
    assert!(serde_json::from_str::<Data<'_>>("\"base64:!\"").is_err());
}

#[test]
fn outcomes_are_one_line_each_with_the_fuel_at_its_end() {
    let publication = Publication {
        topic: "out".into(),
        payload: Bytes::from_static(&[255]),
        content_type: None,
        retain: true,
        sink: None,
    };
    let done = line(&outcome(Verdict::Done(vec![alert(), Output::Publish(publication)])));
    assert_eq!(
        done,
        "{\"outcome\":{\"outputs\":[{\"kind\":\"alert\",\"key\":\"oven\",\"severity\":\"warning\",\"status\":\"firing\",\
         \"summary\":\"hot\",\"value\":0.1},{\"kind\":\"publish\",\"topic\":\"out\",\"payload\":\"base64:/w==\",\
         \"retain\":true}],\"state\":[[\"a\",\"base64:AQLI\"],[\"b\",null]],\"fuel\":2103}}\n"
    );
    assert!(without_fuel(done.as_bytes()).ends_with(b"[\"b\",null]]"));
    let Line::Outcome(read) = serde_json::from_str(&done).unwrap() else { panic!("an outcome") };
    assert_eq!((read.outputs.unwrap().len(), read.state.len(), read.fuel), (2, 2, 2103));
    let failure = Failure { code: FailureCode::Rejected, detail: "no \"fuel\":1".into() };
    let failed = line(&Outcome { writes: Vec::new(), ..outcome(Verdict::Failed(failure)) });
    assert!(has_failed(failed.as_bytes()) && !has_failed(done.as_bytes()));
    let retry = line(&Outcome { writes: Vec::new(), ..outcome(Verdict::Retry { after_ms: 5, reason: "busy".into() }) });
    assert_eq!(retry, "{\"outcome\":{\"retry\":{\"after_ms\":5,\"reason\":\"busy\"},\"fuel\":2103}}\n");
}

#[test]
fn the_last_line_holds_count_and_digest_of_those_before() {
    let mut encoder = Encoder::default();
    encoder.header(&Header::new("pump-3", "sedge", "warm", StateScope::Topic, 5));
    let entries = [("count".into(), Bytes::from_static(b"4"))];
    let drawn = Drawn { clocks: vec![u64::MAX], random: vec![200, 1], is_cut: false };
    let mut lines = Vec::new();
    let run = RecordedRun {
        version: None,
        state: Some((Some("a"), &entries)),
        message: &message(),
        drawn: Some(&drawn),
        is_unsure: true,
        refused: Some((FailureCode::FanOut, "too many")),
        outcome: &outcome(Verdict::Done(vec![alert()])),
    };
    append_run(&run, &mut lines);
    encoder.copy(&lines, true);
    let before = encoder.lines.len();
    let end = encoder.end(Why::Messages);
    assert_eq!((end.runs, end.why), (1, Why::Messages));
    assert_eq!(end.sha256, crate::deploy::digest(&encoder.lines[..before]));
    let lines: Vec<Line<'_>> = encoder
        .lines
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    let [
        Line::Recording(header),
        Line::State(state),
        Line::Message(_),
        Line::Drawn(read),
        Line::Unsure(_),
        Line::Refused(refused),
        ..,
    ] = &lines[..]
    else {
        panic!("{lines:?}")
    };
    assert_eq!((&*header.function, &*header.state, header.format), ("warm", "topic", FORMAT));
    assert_eq!((state.topic.as_deref(), &*state.entries[0].1.0), (Some("a"), &b"4"[..]));
    assert_eq!(read.clone().into_drawn(), drawn);
    assert_eq!(refused.reason, "fan-out");
}

#[test]
fn secret_values_are_never_written() {
    let setting = |text: &str, origin: Origin, is_secret: bool| Setting { text: text.into(), origin, is_secret };
    let all: BTreeMap<String, Setting> = [
        ("max".to_owned(), setting("80", Origin::Function, false)),
        ("min".to_owned(), setting("7", Origin::Node, false)),
        ("token".to_owned(), setting("hush", Origin::Board, true)),
    ]
    .into();
    let topics =
        vec![("a/+".parse().unwrap(), [("token".to_owned(), setting("hush hush", Origin::Board, true))].into())];
    let resolved = Resolved { all, topics, ..Resolved::default() };
    let config: BTreeMap<_, _> = [("max".to_owned(), "80".to_owned())].into();
    let version = RecordedVersion::new("1.0", Digest([7; 32]), &config, &resolved);
    assert_eq!(version.settings, [("min".to_owned(), "7".to_owned())].into());
    assert_eq!(version.secret, ["token"]);
    let mut lines = Vec::new();
    append_line("version", &version, &mut lines);
    assert!(!String::from_utf8(lines).unwrap().contains("hush"));
}

//! The module "sedge/helpers" (`cross/js-engine/helpers.js`).

use bytes::Bytes;

use super::super::engine;
use super::*;

/// Unix time of the first message, in milliseconds.
const START: u64 = 1_700_000_000_000;

/// A message: milliseconds since the start, or without a clock since boot; and the value that it carries.
type Said<'a> = (Option<u64>, &'a str);

fn at(ms: u64, value: &str) -> Said<'_> {
    (Some(ms), value)
}

/// What an expression over `helper`, `message` and `value` says to each message, as JSON.
#[track_caller]
fn says(helper: &str, expression: &str, messages: &[Said<'_>]) -> Vec<String> {
    let source = format!(
        "import {{ forward }} from 'sedge';
        import {{ Hysteresis, Streak, Debounce, Meter, Sliding, Tumbling }} from 'sedge/helpers';
        const helper = {helper};
        export function handle(message) {{
            const value = message.json;
            return forward('said', JSON.stringify({expression} ?? null));
        }}"
    );
    let function = load(&source);
    let (mut said, mut state) = (Vec::new(), ScopeState::default());
    for (ms, value) in messages {
        let mut message = message("t", value.as_bytes());
        (message.received_at_ms, message.clock_synced) = ms.map_or((5_000, false), |ms| (START + ms, true));
        let run = function.invoke(&message, state);
        said.push(forwarded(&run).to_owned());
        state = run.state;
    }
    said
}

#[test]
fn hysteresis_changes_beyond_the_limit_and_when_it_is_back() {
    let values = ["80", "80.5", "95", "79", "78", "78", "81"].map(|value| at(0, value));
    let above = says("Hysteresis.above(80, 2)", "helper.update('k', value)", &values);
    assert_eq!(above, ["null", "\"rising\"", "null", "null", "\"falling\"", "null", "\"rising\""]);
    let values = ["5", "4.9", "5.9", "6", "3"].map(|value| at(0, value));
    let below = says("Hysteresis.below(5, 1)", "helper.update('k', value)", &values);
    assert_eq!(below, ["null", "\"rising\"", "null", "\"falling\"", "\"rising\""]);
}

#[test]
fn a_streak_counts_in_a_row() {
    let values = ["true", "true", "false", "true", "true", "true", "false", "true", "false", "false"];
    let said = says("new Streak(3, 2)", "helper.update('k', value)", &values.map(|value| at(0, value)));
    let mut expected = ["null"; 10];
    (expected[5], expected[9]) = ("\"rising\"", "\"falling\"");
    assert_eq!(said, expected);
}

#[test]
fn a_debounce_waits_and_begins_anew_when_the_clock_is_set() {
    let expression = "[helper.update('k', message, value) ?? 0, helper.remainingMs('k', message) ?? -1]";
    let messages = [
        (None, "true"),
        at(0, "true"),
        at(4_999, "true"),
        at(5_000, "true"),
        at(6_000, "false"),
        at(6_500, "false"),
        at(7_000, "false"),
    ];
    let said = says("new Debounce(5000, 1000)", expression, &messages);
    assert_eq!(said, ["[0,5000]", "[0,5000]", "[0,1]", "[\"rising\",-1]", "[0,1000]", "[0,500]", "[\"falling\",-1]"]);
}

#[test]
fn a_meter_counts_on_when_it_wraps_or_restarts() {
    let expression = "(used => [used.sinceLast, used.total, used.restarted])(helper.update('k', value))";
    let values = ["65530", "4", "-1", "20004", "6"].map(|value| at(0, value));
    let said = says("Meter.wrapping(65536)", expression, &values);
    assert_eq!(said, ["[0,0,false]", "[10,10,true]", "[0,10,false]", "[20000,20010,false]", "[6,20016,true]"]);
    let values = ["100", "99.9", "100.5", "2"].map(|value| at(0, value));
    let said = says("Meter.restarting().jitter(0.2)", expression, &values);
    assert_eq!(said, ["[0,0,false]", "[0,0,false]", "[0.5,0.5,false]", "[2,2.5,true]"]);
}

const FIGURES: &str =
    "(it => it && [it.count, it.sum, it.min, it.max, it.mean(), it.rate() ?? 0, it.percentile(50) ?? 0])";

#[test]
fn a_sliding_window_has_the_last_values() {
    let messages = ["1", "2", "3", "4"].map(|value| at(value.parse::<u64>().unwrap() * 1_000, value));
    let said = says("Sliding.ofCount(3)", &format!("{FIGURES}(helper.add('k', message, value))"), &messages);
    assert_eq!(said[0], "[1,1,1,1,1,0,1]");
    assert_eq!(said[3], "[3,9,2,4,3,1,3]");
    let messages = [at(0, "1"), at(5_000, "2"), at(15_000, "6"), at(15_001, "7")];
    let said = says("Sliding.ofMs(10000, 100)", &format!("{FIGURES}(helper.add('k', message, value))"), &messages);
    assert_eq!(said[2], "[2,8,2,6,4,0.4,4]");
    assert_eq!(said[3], "[2,13,6,7,6.5,1000,6.5]");
    let messages = [(None, "1"), (None, "2"), at(0, "3")];
    let said = says("Sliding.ofMs(10000, 100)", "helper.add('k', message, value).count", &messages);
    assert_eq!(said, ["1", "2", "1"]);
}

fn numbers(json: &str) -> Vec<f64> {
    json.trim_matches(['[', ']']).split(',').map(|number| number.parse().unwrap()).collect()
}

#[test]
fn a_tumbling_window_ends() {
    // 1,700,000,000 s are 20 s into a minute.
    let messages = [at(0, "1"), at(39_999, "3"), at(40_000, "5"), at(99_999, "8"), at(100_000, "2")];
    let said = says("Tumbling.ofMs(60000).keep(10)", &format!("{FIGURES}(helper.add('k', message, value))"), &messages);
    assert_eq!(said[..2], ["null", "null"]);
    let [first, second] = [&said[2], &said[4]].map(|said| numbers(said));
    assert_eq!((&first[..5], first[6]), (&[2.0, 4.0, 1.0, 3.0, 2.0][..], 2.0));
    assert_eq!((&second[..5], second[6]), (&[2.0, 13.0, 5.0, 8.0, 6.5][..], 6.5));
    let values: Vec<String> = (0..101).map(|value| value.to_string()).collect();
    let messages: Vec<Said<'_>> = values.iter().map(|value| at(0, value)).collect();
    let said = says("Tumbling.ofCount(100).keep(8)", &format!("{FIGURES}(helper.add('k', message, value))"), &messages);
    assert!(said[..99].iter().all(|said| said == "null") && said[100] == "null", "{said:?}");
    let hundred = numbers(&said[99]);
    assert_eq!(hundred[..5], [100.0, 4950.0, 0.0, 99.0, 49.5]);
    assert!((40.0..60.0).contains(&hundred[6]), "{hundred:?}");
    let expression =
        "[helper.poll('k', value)?.count ?? 0, state.keys().length, helper.add('k', value, 1)?.count ?? 0]";
    let messages = ["0", "59999", "60000"].map(|value| at(0, value));
    assert_eq!(says("Tumbling.ofMs(60000)", expression, &messages), ["[0,0,0]", "[0,1,0]", "[2,0,0]"]);
}

#[test]
fn stored_values_of_another_form_count_as_nothing() {
    let every = "[Hysteresis.above(1, 0), new Streak(9), new Debounce(9e9), Meter.restarting(), Sliding.ofCount(3),
        Tumbling.ofCount(9), Tumbling.ofMs(9e9)]";
    let expression = "helper.map(it => {
        state.set('k', value);
        const result = it.update ? it.update('k', it instanceof Debounce ? message : 0, true) : it.add('k', message, 1);
        if (it.poll) it.poll('k', message);
        if (it.summary) it.summary('k', message);
        return result?.count ?? result?.total ?? result ?? 0;
    })";
    for stored in [
        "null",
        "1",
        "\"x\"",
        "[]",
        "{}",
        "[1,2,3]",
        "[true]",
        "[[1,true],\"x\",1]",
        "[[1,true],-1,1]",
        "[\"x\",1]",
        "[-1,2]",
        "[[1,true],0,0,[1,1,1,1,1,1],[]]",
        "[[1,true],0,1,[1,1,1,1,1,\"1\"],[]]",
        "[[1,true],0,1,[1,1,1,1,1],[]]",
        "[[1,1],0,1,[1,1,1,1,1,1],[]]",
        "[[1,true],0,1,[1,1,1,1,1,1],{}]",
        "[false,{}]",
    ] {
        let said = says(every, expression, &[at(0, stored)]);
        assert_eq!(said, ["[0,0,0,0,1,0,0]"], "{stored}");
    }
    // What a component of the same name has left behind.
    let function = load(
        "import { Streak } from 'sedge/helpers';
        export function handle() { return forward('said', new Streak(1).update('k', true)); }",
    );
    let state = ScopeState::from_entries([("k".into(), Bytes::from_static(b"\x01\x00\xff"))]);
    assert_eq!(forwarded(&function.invoke(&message("t", b"1"), state)), "rising");
}

#[test]
fn wrong_arguments_are_named() {
    for (body, expected) in [
        ("Hysteresis.above('80', 2)", "the limit must be a finite number, and is \"80\""),
        ("Hysteresis.above(80, 2).update('k', NaN)", "the value must be a finite number, and is NaN"),
        (
            "Sliding.ofCount(3).add('level', message, undefined)",
            "a value of the window \"level\" must be a finite number",
        ),
        ("new Debounce(1).update('k', undefined, true)", "the time must be a finite number"),
        ("new Streak(1).update(5, true)", "the key must be a string"),
    ] {
        let source = format!(
            "import {{ Hysteresis, Sliding, Debounce, Streak }} from 'sedge/helpers';
            export function handle(message) {{ {body}; }}"
        );
        let run = load(&source).invoke(&message("t", b"1"), ScopeState::default());
        let failure = run.failure();
        assert!(failure.code == FailureCode::Exception && failure.detail.contains(expected), "{failure:?}");
    }
    check_load_fails(
        "import { Streak } from 'sedge/helpers'; new Streak(1).update('k', true); export function handle() {}",
        "state can only be used while a message is handled",
    );
}

#[test]
fn their_source_is_not_copied_for_each_message() {
    let is_in = |memory: &[u8]| memory.windows(18).any(|bytes| bytes == b"class Hysteresis {");
    let compiled = engine::with_data(Vec::new());
    let (_, data) = engine::split(&compiled).unwrap();
    assert!(engine::segments(&compiled[data]).any(|(_, bytes)| is_in(bytes)), "the engine has the source");
    let function = load(&handler(""));
    assert!(!is_in(&function.image().expect("the image of a script")));
}

//! Declarations, and values that keep and break them.

use std::path::Path;

use crate::manifest::Manifest;

const SMALL: &str = "name = \"warm\"\nversion = \"1\"\nsubscribe = [\"a\"]\n";

fn parse(lines: &str) -> Result<Manifest, Vec<String>> {
    Manifest::from_toml(&format!("{SMALL}{lines}"), Path::new("function.toml"), None)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

const WHOLE: &str = "\
[settings.max]
type = \"number\"
min = -40
max = 200.5
unit = \"°C\"
text = \"alert above it\"
[settings.mode]
type = \"text\"
values = [\"day\", \"night\"]
[settings.oven.count]
type = \"integer\"
min = 1
[settings.strict]
type = \"boolean\"
[settings.names]
type = \"list\"
[settings.token]
type = \"text\"
secret = true
[config]
max = 80
mode = \"day\"
oven.count = 3
strict = true
names = [\"a\"]
";

#[test]
fn declarations_are_part_of_the_signed_manifest() {
    let manifest = parse(WHOLE).unwrap();
    assert_eq!(manifest.settings.keys().collect::<Vec<_>>(), ["max", "mode", "names", "oven.count", "strict", "token"]);
    let json = manifest.to_json();
    let again = Manifest::from_json(&json, None).unwrap();
    assert_eq!((&again, again.to_json()), (&manifest, json.clone()));
    let json = String::from_utf8(json).unwrap();
    let max = r#""max":{"type":"number","min":-40,"max":200.5,"unit":"°C","text":"alert above it"}"#;
    assert!(json.contains(max), "{json}");
    let plain = String::from_utf8(parse("").unwrap().to_json()).unwrap();
    assert!(!plain.contains("settings"), "an older board would refuse it: {plain}");
}

#[test]
fn a_value_that_breaks_its_declaration_is_refused_with_its_text() {
    let manifest = parse(WHOLE).unwrap();
    let check = |name: &str, value: &str, expected: Option<&str>| {
        let found = manifest.check_setting(name, value).err().map(|invalid| invalid.to_string());
        assert_eq!(found.as_deref(), expected, "{name} = {value}");
    };
    check("max", "-40", None);
    check("max", "200.5", None);
    check("max", "1e2", None);
    check("max", "201", Some("\"201\" is above 200.5; use a number from -40 to 200.5 °C (alert above it)"));
    check("max", "-41", Some("\"-41\" is below -40; use a number from -40 to 200.5 °C (alert above it)"));
    for text in ["", "warm", "nan", "inf", "80 °C"] {
        let expected = format!("{text:?} is not a number; use a number from -40 to 200.5 °C (alert above it)");
        check("max", text, Some(&expected));
    }
    // In a section, the setting behind it decides.
    check("cellar.max", "201", Some("\"201\" is above 200.5; use a number from -40 to 200.5 °C (alert above it)"));
    check("mode", "night", None);
    check("mode", "Night", Some("\"Night\" is none of its values; use one of \"day\", \"night\""));
    check("oven.count", "1", None);
    check("oven.count", "0", Some("\"0\" is below 1; use a whole number of at least 1"));
    check("oven.count", "1.5", Some("\"1.5\" is not a whole number; use a whole number of at least 1"));
    check("strict", "yes", Some("\"yes\" is neither true nor false; use true or false"));
    check("names", "[1, \"b\"]", None);
    check("names", "a, b", Some("\"a, b\" is not a list; use a list"));
    check("token", "anything", None);
    check("maxx", "1", Some("warm has no such setting; did you mean max?"));
    check("door", "1", Some("warm has no such setting; it has max, mode, names, oven.count, strict, token"));
    check("max", &"1".repeat(8193), Some("8193 bytes are too long for a setting; use at most 8192"));
    let bare = parse("").unwrap();
    let invalid = bare.check_setting("max", "1").unwrap_err();
    assert_eq!(invalid.to_string(), "warm has no such setting; function.toml has neither [settings] nor [config]");
    // A setting without a declaration is a text.
    parse("[config]\nmax = 80").unwrap().check_setting("max", "hot").unwrap();
}

#[test]
fn a_secret_value_is_never_part_of_a_message() {
    let manifest = parse("[settings.pin]\ntype = \"integer\"\nsecret = true").unwrap();
    let invalid = manifest.check_setting("pin", "hunter2").unwrap_err();
    assert_eq!(invalid.to_string(), "its secret value is not a whole number; use a whole number");
}

#[test]
fn mistakes_in_declarations_are_reported_at_once() {
    let problems = parse(
        "[settings]\nplain = 5\n[settings.a]\nmin = 1\n[settings.b]\ntype = \"numbr\"\n[settings.c]\ntype = \"number\"\nmin = 5\n\
         max = 4\nvalues = [\"x\"]\n[settings.d]\ntype = \"text\"\nmin = 1\n[settings.e]\ntype = \"number\"\nmin = \"1\"\nmax = inf\n\
         limit = 3\n",
    )
    .unwrap_err();
    assert_eq!(
        problems,
        [
            "function.toml:5:9: settings.plain: expected a section, found a number; write it as [settings.plain]",
            "function.toml:6:1: settings.a.type: missing; for example type = \"number\"",
            "function.toml:9:8: settings.b.type: unknown value \"numbr\"; did you mean \"number\"?",
            "function.toml:12:7: settings.c.min: 5 is above max (4); lower it, or raise max",
            "function.toml:14:10: settings.c.values: only for texts; set type = \"text\", or remove it",
            "function.toml:17:7: settings.d.min: only for numbers; set type = \"number\" or \"integer\", or remove it",
            "function.toml:20:7: settings.e.min: expected a number, found a string; write it without quotes",
            "function.toml:21:7: settings.e.max: out of range; use a number from -9007199254740992 to 9007199254740992",
            "function.toml:22:1: settings.e.limit: unknown key; known here: type, min, max, unit, text, values, secret",
        ]
    );
}

#[test]
fn the_values_of_function_toml_are_held_against_its_declarations() {
    let problems = parse(
        "[settings.max]\ntype = \"number\"\nmax = 200\n[settings.token]\ntype = \"text\"\nsecret = true\n[config]\nmax = 300\n\
         token = \"x\"\n[config.oven]\nmax = \"hot\"\n",
    )
    .unwrap_err();
    assert_eq!(
        problems,
        [
            "function.toml:11:7: config.max: \"300\" is above 200; use a number of at most 200",
            "function.toml:12:9: config.token: declared as secret, but everyone can read function.toml and the reports of \
             boards; remove it here; the board's configuration names its file",
            "function.toml:14:7: config.oven.max: \"hot\" is not a number; use a number of at most 200",
        ]
    );
    // Without a value there the board must have one.
    parse("[settings.max]\ntype = \"number\"").unwrap();
}

//! Differences between two manifests, shown before a push.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::Value;

use crate::printable;

/// One key that differs. Lists are compared by members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct ManifestChange {
    /// `limits.fuel`, `allow.publish`
    pub(crate) key: String,
    #[serde(flatten)]
    pub(crate) kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(crate) enum Kind {
    Members { added: Vec<Value>, removed: Vec<Value> },
    Value { from: Option<Value>, to: Option<Value> },
}

/// Returns the changes sorted by key. Without an old manifest everything is new.
pub(crate) fn changes(old: Option<&Value>, new: &Value) -> Vec<ManifestChange> {
    let mut found = Vec::new();
    compare(String::new(), old, Some(new), &mut found);
    found.sort_by(|a, b| a.key.cmp(&b.key));
    found
}

fn compare<'a>(key: String, old: Option<&'a Value>, new: Option<&'a Value>, found: &mut Vec<ManifestChange>) {
    if old == new {
        return;
    }
    match (old, new) {
        (None | Some(Value::Object(_)), Some(Value::Object(_))) | (Some(Value::Object(_)), None) => {
            let members = [old, new].into_iter().flatten().filter_map(Value::as_object).flatten();
            for name in members.map(|(name, _)| name).collect::<BTreeSet<_>>() {
                let member = |value: Option<&'a Value>| value.and_then(|value| value.get(name));
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                compare(key, member(old), member(new), found);
            }
        }
        (None | Some(Value::Array(_)), Some(Value::Array(_))) | (Some(Value::Array(_)), None) => {
            let list = |value: Option<&Value>| value.and_then(Value::as_array).cloned().unwrap_or_default();
            let (old, new) = (list(old), list(new));
            let without = |these: &[Value], those: &[Value]| -> Vec<Value> {
                these.iter().filter(|value| !those.contains(value)).cloned().collect()
            };
            let (added, removed) = (without(&new, &old), without(&old, &new));
            // Order does not matter, and an empty list equals none.
            if !added.is_empty() || !removed.is_empty() {
                found.push(ManifestChange { key, kind: Kind::Members { added, removed } });
            }
        }
        _ => found.push(ManifestChange { key, kind: Kind::Value { from: old.cloned(), to: new.cloned() } }),
    }
}

impl ManifestChange {
    /// One line per value or member.
    pub(crate) fn lines(&self) -> Vec<String> {
        match &self.kind {
            Kind::Members { added, removed } => {
                let line = |sign, value| format!("{sign} {:<20} {}", printable(&self.key), shown(value));
                let removed = removed.iter().map(|value| line('-', value));
                removed.chain(added.iter().map(|value| line('+', value))).collect()
            }
            Kind::Value { from, to } => {
                let (sign, text) = match (from, to) {
                    (Some(from), Some(to)) => ('~', format!("{} -> {}", shown(from), shown(to))),
                    (Some(from), None) => ('-', shown(from)),
                    (None, to) => ('+', to.as_ref().map(shown).unwrap_or_default()),
                };
                vec![format!("{sign} {:<20} {text}", printable(&self.key))]
            }
        }
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => printable(text),
        other => printable(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(old: Option<Value>, new: &Value, expected: &[&str]) {
        let lines: Vec<String> = changes(old.as_ref(), new).iter().flat_map(ManifestChange::lines).collect();
        assert_eq!(lines, expected);
    }

    #[test]
    fn topics_limits_and_permissions() {
        let old = json!({
            "name": "a", "version": "1", "every": "1s", "subscribe": ["x", "y"], "allow": {"publish": [], "clock": false},
            "limits": {"fuel": 10, "outputs": 4}, "config": {"max": "80", "unit": "C"}
        });
        let new = json!({
            "name": "a", "version": "2", "subscribe": ["y", "z"], "allow": {"publish": ["d/#"], "clock": true},
            "limits": {"fuel": 20, "outputs": 4}, "config": {"max": "85"}
        });
        check(
            Some(old),
            &new,
            &[
                "~ allow.clock          false -> true",
                "+ allow.publish        d/#",
                "~ config.max           80 -> 85",
                "- config.unit          C",
                "- every                1s",
                "~ limits.fuel          10 -> 20",
                "- subscribe            x",
                "+ subscribe            z",
                "~ version              1 -> 2",
            ],
        );
    }

    #[test]
    fn another_order_of_members_is_not_a_change() {
        check(Some(json!({"subscribe": ["a", "b"], "name": "x"})), &json!({"name": "x", "subscribe": ["b", "a"]}), &[]);
    }

    #[test]
    fn without_an_old_manifest_everything_is_new() {
        check(
            None,
            &json!({"name": "a", "subscribe": ["x"], "allow": {"publish": []}}),
            &["+ name                 a", "+ subscribe            x"],
        );
    }

    #[test]
    fn as_json() {
        let found = changes(Some(&json!({"l": [1], "n": 1})), &json!({"l": [2], "n": 2}));
        let expected = json!([{"key": "l", "added": [2], "removed": [1]}, {"key": "n", "from": 1, "to": 2}]);
        assert_eq!(serde_json::to_value(found).unwrap(), expected);
    }
}

use super::*;

const NONE: StateBounds = StateBounds { total_bytes: None, forgets: false };

fn states(max_bytes: u64) -> States {
    States::new(max_bytes, Seeded::new(7))
}

fn scope(function: &str, topic: &str) -> Scope {
    Scope { function: function.into(), topic: Some(topic.into()) }
}

/// Growth by one key of an empty scope, so that the scope counts so many bytes.
fn first_key(bytes: u64, topic: &str) -> StateGrowth {
    let bytes = bytes - SCOPE_BYTES - ENTRY_BYTES - topic.len() as u64;
    StateGrowth { bytes: bytes.cast_signed(), keys: 1, scopes: 1 }
}

fn grow(bytes: i64) -> StateGrowth {
    StateGrowth { bytes, ..StateGrowth::default() }
}

fn admit(states: &mut States, scope: &Scope, growth: StateGrowth, bounds: StateBounds) -> Result<Admitted, Failure> {
    states.admit(scope, growth, bounds, |_| true, |_| true)
}

#[test]
fn several_outcomes_before_one_commit_share_the_room() {
    let mut states = states(2000);
    admit(&mut states, &scope("f", "a"), first_key(1000, "a"), NONE).unwrap();
    admit(&mut states, &scope("g", "a"), first_key(900, "a"), NONE).unwrap();
    admit(&mut states, &scope("f", "a"), grow(100), NONE).unwrap();
    let failure = admit(&mut states, &scope("f", "a"), grow(1), NONE).unwrap_err();
    assert_eq!(failure.code, FailureCode::StateFull);
    let text = "the run adds 1 bytes to 2000 bytes of state of all functions, 1100 of them its own; the limit is 2000 \
                (store.state_max_bytes): remove keys, raise it, or remove a function";
    assert_eq!(failure.detail, text);
    assert_eq!((states.bytes_of("f"), states.bytes_of("g"), states.bytes()), (1100, 900, 2000));
}

#[test]
fn what_is_freed_counts_until_its_commit_is_sent() {
    let mut states = states(1000);
    admit(&mut states, &scope("f", "a"), first_key(1000, "a"), NONE).unwrap();
    let freed = admit(&mut states, &scope("f", "a"), grow(-300), NONE).unwrap().freed;
    assert_eq!((freed, states.bytes()), (300, 1000));
    admit(&mut states, &scope("g", "a"), first_key(600, "a"), NONE).unwrap_err();
    admit(&mut states, &scope("f", "a"), grow(10), NONE).unwrap_err();
    states.freed("f", freed);
    admit(&mut states, &scope("f", "a"), grow(300), NONE).unwrap();
    assert_eq!(states.bytes(), 1000);
}

#[test]
fn a_function_has_a_bound_of_its_own() {
    let mut states = states(10_000);
    let bounds = StateBounds { total_bytes: Some(1500), ..NONE };
    admit(&mut states, &scope("f", "a"), first_key(1000, "a"), bounds).unwrap();
    let failure = admit(&mut states, &scope("f", "b"), first_key(600, "b"), bounds).unwrap_err();
    let text = "the run adds 600 bytes to 1000 bytes of state, the limit of the function is 1500 \
                (limits.state_total_bytes): remove keys, raise it, or set state_full = \"forget-oldest\"";
    assert_eq!(failure.detail, text);
    admit(&mut states, &scope("g", "b"), first_key(600, "b"), NONE).unwrap();
    // A lower limit of a later version does not keep it from removing keys.
    let lower = StateBounds { total_bytes: Some(600), ..NONE };
    admit(&mut states, &scope("f", "a"), grow(-1), lower).unwrap();
}

#[test]
fn the_scopes_that_were_not_used_for_longest_make_room() {
    let mut states = states(10_000);
    let bounds = StateBounds { total_bytes: Some(3000), forgets: true };
    for topic in ["a", "b", "c"] {
        admit(&mut states, &scope("f", topic), first_key(1000, topic), bounds).unwrap();
    }
    states.touch(&scope("f", "a"));
    let admitted = admit(&mut states, &scope("f", "d"), first_key(1000, "d"), bounds).unwrap();
    assert_eq!(admitted.forgotten, [Some("b".into())]);
    // A scope in use is passed over, and so is the one that is written.
    let in_use = |topic: &Option<Arc<str>>| topic.as_deref() != Some("c");
    let admitted = states.admit(&scope("f", "e"), first_key(1000, "e"), bounds, |_| true, in_use).unwrap();
    assert_eq!(admitted.forgotten, [Some("a".into())]);
    assert_eq!(states.bytes_of("f"), 3000);
    let failure = states.admit(&scope("f", "x"), first_key(600, "x"), bounds, |_| true, |_| false).unwrap_err();
    assert_eq!(failure.code, FailureCode::StateFull);
    assert_eq!(states.bytes_of("f"), 3000, "nothing is forgotten in vain");
}

#[test]
fn state_of_removed_functions_is_forgotten_first() {
    let mut states = states(3000);
    let is_installed = |name: &str| name == "f";
    let all = [("gone", "a", 1000), ("f", "a", 1000), ("old", "a", 900)];
    let stored = all.map(|(name, topic, bytes)| StoredState { scope: scope(name, topic), bytes });
    states.restore(stored.to_vec());
    let bounds = StateBounds { total_bytes: None, forgets: true };
    let admitted = states.admit(&scope("f", "b"), first_key(1000, "b"), bounds, is_installed, |_| true).unwrap();
    assert_eq!((admitted.removed, admitted.forgotten), (vec!["gone".into()], vec![]));
    assert_eq!((states.bytes_of("gone"), states.bytes()), (0, 2900));
    let admitted = states.admit(&scope("f", "c"), first_key(2000, "c"), bounds, is_installed, |_| true).unwrap();
    assert_eq!((admitted.removed, admitted.forgotten), (vec!["old".into()], vec![Some("a".into())]));
    assert_eq!(states.bytes(), 3000);
}

/// The last job of a version may end after the version was removed.
#[test]
fn a_run_does_not_make_room_by_what_it_writes_to() {
    let mut states = states(2000);
    let (shadow, bounds) = (scope("f~1", "a"), StateBounds { total_bytes: None, forgets: true });
    admit(&mut states, &shadow, first_key(1500, "a"), bounds).unwrap();
    states.admit(&shadow, grow(600), bounds, |_| false, |_| false).unwrap_err();
    assert_eq!(states.bytes_of("f~1"), 1500);
    states.admit(&scope("f", "a"), first_key(600, "a"), bounds, |_| false, |_| false).unwrap();
    assert_eq!((states.bytes_of("f~1"), states.bytes()), (0, 600));
}

#[test]
fn sums_equal_what_a_restart_would_count() {
    let mut states = states(u64::MAX);
    let a = scope("f", "a");
    admit(&mut states, &a, StateGrowth { bytes: 10, keys: 2, scopes: 1 }, NONE).unwrap();
    assert_eq!(states.bytes_of("f"), scope_bytes(Some("a"), 2, 10));
    let freed = admit(&mut states, &a, StateGrowth { bytes: -10, keys: -2, scopes: -1 }, NONE).unwrap().freed;
    states.freed("f", freed);
    assert_eq!((states.bytes(), states.functions.len()), (0, 0));
}

#[test]
fn a_scope_that_begins_with_entries_of_another_counts_them() {
    let mut states = states(2000);
    let entries: Vec<(Box<str>, Bytes)> = vec![("k".into(), Bytes::from_static(&[0; 1000]))];
    let shadow = scope("f~1", "a");
    (0..2).for_each(|_| states.begin(&shadow, &entries));
    assert_eq!(states.bytes(), scope_bytes(Some("a"), 1, 1001));
    admit(&mut states, &shadow, grow(500), NONE).unwrap_err();
    admit(&mut states, &shadow, grow(400), NONE).unwrap();
}

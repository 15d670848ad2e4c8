use super::*;
use crate::testing::Board;
use core::fmt::Debug;
use proptest::prelude::*;

#[track_caller]
fn check<V: Value + PartialEq + Debug>(value: V, bytes: &[u8]) {
    assert_eq!(value.encode(<[u8]>::to_vec), bytes);
    assert_eq!(V::decode(bytes.to_vec()), Some(value));
}

#[test]
fn values_come_back() {
    check(21.5, &21.5f64.to_le_bytes());
    check([1.0, -2.0], &[1.0f64.to_le_bytes(), (-2.0f64).to_le_bytes()].concat());
    check(true, &[1]);
    check(0i64, b"0");
    check(-42i64, b"-42");
    check(i64::MIN, b"-9223372036854775808");
    check(u64::MAX, b"18446744073709551615");
    check(String::from("é"), "é".as_bytes());
    check(b"\0\xff".to_vec(), b"\0\xff");
    assert_eq!(f64::decode(b"1234567".to_vec()), None);
    assert_eq!(<[f64; 2]>::decode([0; 17].to_vec()), None);
    assert_eq!(<[f64; 2]>::decode([0; 24].to_vec()), None);
    assert_eq!(bool::decode(b"\x02".to_vec()), None);
    assert_eq!(i64::decode(b"x".to_vec()), None);
}

#[test]
fn keys_are_those_of_the_scope_in_order() {
    let mut board = Board::new();
    board.with_state(|| {
        assert_eq!(keys(), Ok(Vec::new()));
        set("b", 1u64).unwrap();
        set("a", 1u64).unwrap();
        set("c", 1u64).unwrap();
        remove("c").unwrap();
        assert_eq!(keys().unwrap(), ["a", "b"]);
    });
    assert_eq!(Board::new().without_state().with_state(keys), Ok(Vec::new()));
}

/// Calls every helper under one key, twice.
fn use_all(key: &str, at: Moment, value: f64) -> Result<(), Failure> {
    for _ in 0..2 {
        Hysteresis::above(50.0, 1.0).update(key, value)?;
    }
    for _ in 0..2 {
        Streak::new(3, 2).update(key, value > 50.0)?;
    }
    for _ in 0..2 {
        Debounce::new(10, 10).update(key, at, value > 50.0)?;
        Debounce::new(10, 10).remaining_ms(key, at)?;
    }
    for _ in 0..2 {
        let used = Meter::wrapping(256.0).update(key, value)?;
        assert!(used.total >= 0.0 && used.since_last >= 0.0, "{used:?}");
    }
    for _ in 0..2 {
        check_figures(&Sliding::of_ms(1_000, 8).add(key, at, value)?);
    }
    for _ in 0..2 {
        if let Some(summary) = Tumbling::of_ms(1_000).keep(8).add(key, at, value)? {
            check_figures(&summary);
        }
        if let Some(summary) = Tumbling::of_count(3).add(key, at, value)? {
            check_figures(&summary);
        }
    }
    Ok(())
}

fn check_figures(summary: &Summary) {
    assert!(summary.count > 0 && summary.min <= summary.max && !summary.mean().is_nan(), "{summary:?}");
    assert!(summary.percentile(50.0).is_none_or(f64::is_finite), "{summary:?}");
    let (_, _) = (summary.rate(), summary.frequency());
}

proptest! {
    #[test]
    fn damaged_and_foreign_bytes_are_no_error_and_no_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..120),
        version in 0..3u8,
        unix_ms in any::<u64>(),
        synced in any::<bool>(),
        value in 0.0..100.0f64,
    ) {
        if let Some(first) = bytes.first_mut() {
            *first = version;
        }
        let at = Moment { unix_ms, synced };
        // Each helper finds the bytes, and then what the helper before it left behind.
        let outcome = Board::new().with_state(|| {
            set("k", bytes.clone())?;
            check_figures(&Sliding::of_count(8).add("k", at, value)?);
            set("k", bytes.clone())?;
            Tumbling::of_count(3).keep(8).add("k", at, value)?.iter().for_each(check_figures);
            set("k", bytes.clone())?;
            Meter::restarting().jitter(1.0).update("k", value)?;
            set("k", bytes.clone())?;
            Debounce::new(10, 10).update("k", at, value > 50.0)?;
            set("k", bytes)?;
            use_all("k", at, value)
        });
        prop_assert_eq!(outcome, Ok(()));
    }

    #[test]
    fn a_record_with_one_changed_byte_is_no_error_and_no_panic(
        values in prop::collection::vec(0.0..100.0f64, 1..6),
        place in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        type Update = fn(Moment, f64) -> Result<(), Failure>;
        let helpers: [Update; 5] = [
            |_, value| Streak::new(9, 9).update("k", value > 50.0).map(drop),
            |at, value| Debounce::new(900, 900).update("k", at, value > 50.0).map(drop),
            |_, value| Meter::wrapping(256.0).update("k", value).map(drop),
            |at, value| Sliding::of_ms(10_000, 4).add("k", at, value).map(|summary| check_figures(&summary)),
            |at, value| {
                let ended = Tumbling::of_ms(10_000).keep(4).add("k", at, value)?;
                ended.iter().for_each(check_figures);
                Ok(())
            },
        ];
        for update in helpers {
            let outcome = Board::new().with_state(|| {
                for (index, value) in values.iter().enumerate() {
                    update(Moment::at(1_000 * index as u64), *value)?;
                }
                let mut bytes = get::<Vec<u8>>("k")?.unwrap_or_default();
                if !bytes.is_empty() {
                    let at = place.index(bytes.len());
                    bytes[at] = byte;
                    set("k", bytes.clone())?;
                    update(Moment::at(6_000), 1.0)?;
                    bytes.truncate(cut.index(bytes.len()));
                    set("k", bytes)?;
                }
                update(Moment::at(60_000), 1.0)
            });
            prop_assert_eq!(outcome, Ok(()));
        }
    }
}

//! "did you mean": the known word that is nearest to what was written.

/// `None` when nothing is near enough to be a slip of the hand.
pub(crate) fn nearest<'w>(written: &str, known: &[&'w str]) -> Option<&'w str> {
    let same = |a: &str, b: &str| a.to_lowercase().replace('-', "_") == b.replace('-', "_");
    let allowed = written.chars().count().max(3) / 3;
    // A name without its unit is the most frequent slip of all: `timeout` for `timeout_ms`.
    let begins =
        |word: &str| written.len() >= 4 && word.strip_prefix(written).is_some_and(|rest| rest.starts_with('_'));
    known
        .iter()
        .map(|word| (if same(written, word) || begins(word) { 0 } else { distance(written, word) }, *word))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// Insertions, deletions, replacements and swaps of neighbours (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_slips() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("recieve", "receive"), 1);
        assert_eq!(distance("same", "same"), 0);
    }

    #[test]
    fn finds_what_was_meant() {
        let known = ["receive_maximum", "url", "timeout_ms", "keep_alive_secs"];
        assert_eq!(nearest("recieve_maximum", &known), Some("receive_maximum"));
        assert_eq!(nearest("Receive-Maximum", &known), Some("receive_maximum"));
        assert_eq!(nearest("ur", &known), Some("url"));
        assert_eq!(nearest("timeout", &known), Some("timeout_ms"));
        assert_eq!(nearest("keep_alive", &known), Some("keep_alive_secs"));
        assert_eq!(nearest("port", &known), None);
        assert_eq!(nearest("x", &known), None);
    }
}

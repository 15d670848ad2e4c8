//! Results as JUnit XML, which continuous integration shows.

use std::fmt::Write as _;

use super::Tested;

pub(super) fn report(tested: &[Tested]) -> String {
    let failures = tested.iter().filter(|it| !it.problems.is_empty()).count();
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = writeln!(xml, "<testsuite name=\"sedge test\" tests=\"{}\" failures=\"{failures}\">", tested.len());
    for it in tested {
        let (function, case, secs) = (escaped(&it.function), escaped(&it.case), it.took.as_secs_f64());
        let _ = write!(xml, "  <testcase classname=\"{function}\" name=\"{case}\" time=\"{secs:.3}\"");
        if it.problems.is_empty() {
            xml.push_str("/>\n");
            continue;
        }
        let lines: Vec<String> = it.problems.iter().flat_map(super::Problem::lines).collect();
        let first = escaped(lines.first().map_or("", |line| line));
        let _ = writeln!(xml, ">\n    <failure message=\"{first}\">{}</failure>", escaped(&lines.join("\n")));
        xml.push_str("  </testcase>\n");
    }
    xml.push_str("</testsuite>\n");
    xml
}

/// XML has no control characters but white space, not even escaped.
fn escaped(text: &str) -> String {
    let mut xml = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => xml.push_str("&amp;"),
            '<' => xml.push_str("&lt;"),
            '>' => xml.push_str("&gt;"),
            '"' => xml.push_str("&quot;"),
            '\n' | '\t' => xml.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => xml.push('\u{fffd}'),
            c => xml.push(c),
        }
    }
    xml
}

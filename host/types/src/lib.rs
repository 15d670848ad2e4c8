//! Erases the types of TypeScript, so that JavaScript is left, with everything in the places where its author wrote it.
//!
//! Types are overwritten with spaces. Bytes, lines and columns stay what they are, and no source map is needed. Syntax that makes code
//! (enums, namespaces with values, parameter properties) is refused: it is what `erasableSyntaxOnly` of `tsc` and Node.js refuse too.

mod eraser;
mod names;
#[cfg(test)]
mod tests;
mod text;

use oxc_allocator::Allocator;
use oxc_ast_visit::Visit as _;
use oxc_parser::Parser;
use oxc_span::SourceType;

use eraser::Eraser;
use text::Text;

/// Stack of the parser, which calls itself for each level of nesting: about a kilobyte of it.
const STACK_BYTES: usize = 64 << 20;

/// What is wrong in a source, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// What is wrong, and the fix.
    pub what: String,
}

/// Overwrites the types of a module. All problems are reported, in their order in the source.
pub fn erase(source: &str) -> Result<String, Vec<Problem>> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("types".into()).stack_size(STACK_BYTES);
        match thread.spawn_scoped(scope, || erase_here(source)) {
            Ok(erasing) => erasing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            // There is no memory for the stack: a source that is not nested deeply gets by without.
            Err(_) => erase_here(source),
        }
    })
}

fn erase_here(source: &str) -> Result<String, Vec<Problem>> {
    let allocator = Allocator::default();
    let parsed = Parser::new(&allocator, source, SourceType::ts().with_module(true)).parse();
    if !parsed.diagnostics.is_empty() || parsed.panicked {
        let problems = parsed.diagnostics.into_vec().into_iter().map(|diagnostic| {
            let at = diagnostic.labels.first().map_or(0, |label| label.offset());
            let help = diagnostic.help.as_deref().map_or_else(String::new, |help| format!(": {help}"));
            (at, format!("{}{help}", diagnostic.message))
        });
        return Err(placed(source, problems.collect()));
    }
    let mut eraser = Eraser::new(Text::new(source));
    eraser.visit_program(&parsed.program);
    eraser.finish().map_err(|problems| placed(source, problems))
}

/// Problems at byte offsets, as problems in lines and columns.
fn placed(source: &str, mut problems: Vec<(u32, String)>) -> Vec<Problem> {
    problems.sort_by_key(|(at, _)| *at);
    let place = |(at, what)| {
        let before = &source[..source.floor_char_boundary(at as usize)];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.matches('\n').count() + 1;
        Problem { line, column: before[line_start..].chars().count() + 1, what }
    };
    problems.into_iter().map(place).collect()
}

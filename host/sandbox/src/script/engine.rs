//! The JavaScript engine: QuickJS-ng as one core module, built by `cross/js-engine.sh`.
//!
//! The module is compiled without its data segments. So one compiled engine serves all scripts, each with a memory of its own that the
//! host puts in place. The segments travel behind the code, so that a build without a compiler has no part of the engine in it:
//!
//! ```text
//! compiled engine := native code, content of the data section, its length:u32le
//! ```

use std::ops::Range;
use std::sync::LazyLock;

use wasmparser::{BinaryReader, DataKind, DataSectionReader, Operator};

#[cfg(feature = "compiler")]
use crate::componentize::{push_section, sections};
use sedge_core::message::Digest;

#[cfg(feature = "compiler")]
const ENGINE: &[u8] = include_bytes!("engine.wasm");
#[cfg(feature = "compiler")]
const DATA_SECTION: u8 = 11;

/// Digest of the engine, by which its compiled code is known.
pub static DIGEST: LazyLock<Digest> = LazyLock::new(|| {
    let text = include_str!("engine.wasm.sha256");
    text.split_whitespace().next().and_then(|digest| digest.parse().ok()).expect("the digest lies beside the engine")
});

/// The engine without data segments.
#[cfg(feature = "compiler")]
pub(crate) fn without_data() -> Vec<u8> {
    const START_SECTION: u8 = 8;
    const DATA_COUNT_SECTION: u8 = 12;
    let mut module = ENGINE[..8].to_vec();
    for (id, content) in sections(ENGINE).expect("the engine is well-formed") {
        if !matches!(id, START_SECTION | DATA_SECTION | DATA_COUNT_SECTION) {
            push_section(&mut module, id, content);
        }
    }
    module
}

/// Appends the data segments to the native code of [`without_data`].
#[cfg(feature = "compiler")]
pub(crate) fn with_data(mut code: Vec<u8>) -> Vec<u8> {
    let sections = sections(ENGINE).expect("the engine is well-formed");
    let (_, data) = sections.into_iter().find(|(id, _)| *id == DATA_SECTION).expect("the engine has data");
    code.extend_from_slice(data);
    code.extend_from_slice(&(data.len() as u32).to_le_bytes());
    code
}

/// Length of the native code, and where the data section lies.
pub(crate) fn split(compiled: &[u8]) -> Option<(usize, Range<usize>)> {
    let (rest, length) = compiled.split_last_chunk()?;
    let code = rest.len().checked_sub(u32::from_le_bytes(*length) as usize)?;
    Some((code, code..rest.len()))
}

/// Address and content of each data segment. Stops at one that is malformed, which the engine has not.
pub(crate) fn segments(section: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let section = DataSectionReader::new(BinaryReader::new(section, 0));
    section.into_iter().flat_map(IntoIterator::into_iter).map_while(Result::ok).filter_map(|segment| {
        let DataKind::Active { memory_index: 0, offset_expr } = segment.kind else { return None };
        match offset_expr.get_operators_reader().read() {
            Ok(Operator::I32Const { value }) => Some((value.cast_unsigned() as usize, segment.data)),
            _ => None,
        }
    })
}

#[cfg(all(test, feature = "compiler"))]
mod tests {
    use super::*;
    use wasmparser::{ExternalKind, Parser, Payload};

    /// What the memory image does not hold must be the same in each instance.
    #[test]
    fn nothing_but_memory_and_one_global_can_change() {
        let (mut mutable, mut exports, mut memories) = (0, Vec::new(), Vec::new());
        for payload in Parser::new(0).parse_all(ENGINE) {
            match payload.unwrap() {
                Payload::GlobalSection(section) => {
                    mutable += section.into_iter().filter(|global| global.as_ref().unwrap().ty.mutable).count();
                }
                Payload::MemorySection(section) => memories.extend(section.into_iter().map(Result::unwrap)),
                Payload::ExportSection(section) => {
                    exports.extend(section.into_iter().map(Result::unwrap).map(|it| (it.name, it.kind)));
                }
                Payload::ImportSection(section) => {
                    for import in section.into_imports() {
                        assert!(import.unwrap().module.starts_with("wasi:"), "an interface of the world");
                    }
                }
                Payload::StartSection { .. } => panic!("a start function would run before the memory is in place"),
                Payload::CodeSectionEntry(body) => {
                    for operator in body.get_operators_reader().unwrap() {
                        let operator = operator.unwrap();
                        let changes = matches!(
                            operator,
                            Operator::TableSet { .. }
                                | Operator::TableGrow { .. }
                                | Operator::TableFill { .. }
                                | Operator::TableCopy { .. }
                                | Operator::TableInit { .. }
                                | Operator::ElemDrop { .. }
                                | Operator::MemoryInit { .. }
                                | Operator::DataDrop { .. }
                        );
                        assert!(!changes, "{operator:?}");
                    }
                }
                _ => {}
            }
        }
        assert_eq!(mutable, 1, "the stack pointer, which is back at its first value between calls");
        assert_eq!(memories.len(), 1);
        assert!(exports.iter().all(|(name, kind)| match *kind {
            ExternalKind::Memory => *name == "memory",
            ExternalKind::Func => true,
            _ => false,
        }));
        let module = without_data();
        let mut rest = Parser::new(0).parse_all(&module).map(Result::unwrap).collect::<Vec<_>>();
        rest.retain(|part| matches!(part, Payload::DataSection(_) | Payload::DataCountSection { .. }));
        assert!(rest.is_empty(), "{rest:?}");
        wasmparser::Validator::new().validate_all(&module).unwrap();
    }

    #[test]
    fn all_data_segments_are_found() {
        let compiled = with_data(b"code".to_vec());
        let (code, data) = split(&compiled).unwrap();
        assert_eq!(&compiled[..code], b"code");
        let data: Vec<_> = segments(&compiled[data]).collect();
        let total: usize = data.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(total > 100_000, "{total} bytes");
        for payload in Parser::new(0).parse_all(ENGINE) {
            if let Payload::DataSection(section) = payload.unwrap() {
                assert_eq!(section.count() as usize, data.len(), "each is active, at a constant address");
            }
        }
        for damaged in [&b""[..], b"abc", &[1, 0, 0, 0], &[0xff; 20]] {
            assert_eq!(split(damaged), None);
        }
    }

    #[test]
    fn the_digest_beside_the_engine_is_its_own() {
        assert_eq!(*DIGEST, sedge_core::deploy::digest(ENGINE));
    }
}

//! The versions of the contract `sedge:function` that this host speaks. A function names its own by what it exports.

/// Interface that every function exports, without its version.
const INTERFACE: &str = "sedge:function/handler@";
const FUNCTION: &str = "#handle";

/// Interface that a program for WASI 0.2 exports. All its versions are one.
const RUN: &str = "wasi:cli/run@0.2.";

/// Whether an export of a component or of a core module is where a program for WASI 0.2 starts.
pub(crate) fn is_run(export: &str) -> bool {
    export.starts_with(RUN)
}

/// Version of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contract {
    V0_1,
    V0_2,
}

impl Contract {
    /// All versions, the newest last.
    pub(crate) const ALL: [Self; 2] = [Self::V0_1, Self::V0_2];

    /// The interface that a component of this version exports.
    pub(crate) const fn export(self) -> &'static str {
        match self {
            Self::V0_1 => "sedge:function/handler@0.1.0",
            Self::V0_2 => "sedge:function/handler@0.2.0",
        }
    }

    /// The handler that a core module of this version exports, by the canonical ABI's name.
    pub(crate) const fn handle(self) -> &'static str {
        match self {
            Self::V0_1 => "sedge:function/handler@0.1.0#handle",
            Self::V0_2 => "sedge:function/handler@0.2.0#handle",
        }
    }

    /// The world, encoded by the generator of the SDK.
    #[cfg(feature = "compiler")]
    pub(crate) const fn world(self) -> &'static [u8] {
        match self {
            Self::V0_1 => include_bytes!("../../../guest-sdk/wit/0.1.0/component-type.bin"),
            Self::V0_2 => include_bytes!("../../../guest-sdk/src/component-type.bin"),
        }
    }

    fn version(self) -> &'static str {
        &self.export()[INTERFACE.len()..]
    }

    /// Returns the newest version among the exports of a component or of a core module. `None` where none of them is a handler.
    pub(crate) fn of_exports<'a>(names: impl Iterator<Item = &'a str>) -> Result<Option<Self>, OtherContract> {
        let (mut newest, mut other) = (None, None);
        for name in names {
            let name = name.strip_suffix(FUNCTION).unwrap_or(name);
            match Self::ALL.into_iter().rposition(|contract| contract.export() == name) {
                Some(place) => newest = newest.max(Some(place)),
                None if name.starts_with(INTERFACE) => other = Some(name),
                None => {}
            }
        }
        match (newest, other) {
            (Some(place), _) => Ok(Some(Self::ALL[place])),
            (None, Some(name)) => Err(OtherContract { found: name.into() }),
            (None, None) => Ok(None),
        }
    }
}

/// The function was built for a version of the contract that this host does not speak.
#[derive(Debug, thiserror::Error)]
#[error(
    "the function exports `{found}`, and this version of sedge runs the versions {known} of the contract: build the function with \
     an SDK of one of these versions, or update sedge",
    known = Contract::ALL.map(Contract::version).join(" and ")
)]
pub struct OtherContract {
    found: Box<str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(names: &[&str], expected: Option<Contract>) {
        assert_eq!(Contract::of_exports(names.iter().copied()).unwrap(), expected);
    }

    #[test]
    fn a_function_names_its_contract_by_its_export() {
        for contract in Contract::ALL {
            assert_eq!(format!("{}{FUNCTION}", contract.export()), contract.handle());
            check(&["memory", contract.handle()], Some(contract));
            check(&[contract.export(), "other"], Some(contract));
        }
        check(&["memory", "wasi:cli/run@0.2.0"], None);
        check(&[Contract::V0_2.export(), Contract::V0_1.export()], Some(Contract::V0_2));
        check(&["sedge:function/handler@0.9.0", Contract::V0_1.export()], Some(Contract::V0_1));
    }

    #[test]
    fn recordings_hold_what_the_newest_version_gives_functions() {
        let [.., newest] = Contract::ALL;
        assert_eq!(format!("sedge:function@{}", newest.version()), sedge_core::recording::CONTRACT);
    }

    #[test]
    fn another_version_is_refused_with_those_that_this_host_speaks() {
        for name in ["sedge:function/handler@0.3.0", "sedge:function/handler@0.3.0#handle"] {
            let error = Contract::of_exports([name].into_iter()).unwrap_err().to_string();
            assert!(error.contains("`sedge:function/handler@0.3.0`") && error.contains("0.1.0 and 0.2.0"), "{error}");
        }
    }
}

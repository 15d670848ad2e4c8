//! What is left of TypeScript runs in the engine for scripts, and does what its author meant.

#![cfg(feature = "operator")]
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use std::fs;
use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use proptest::sample::select;
use sedge_core::grants::Grants;
use sedge_core::isa::Class;
use sedge_core::limits::Limits;
use sedge_sandbox::script::archive;
use sedge_sandbox::{Sandbox, compile};

/// Compiled once for all tests.
static ENGINE: LazyLock<Vec<u8>> = LazyLock::new(|| compile::script_engine(Class::Small).unwrap());

const LIMITS: Limits = Limits {
    fuel: 100_000_000,
    timeout_ms: 2_000,
    memory_bytes: 4 << 20,
    outputs: 64,
    output_bytes: 1 << 16,
    state_bytes: 1 << 16,
};

/// Runs a module of which types are erased. What it throws is the error.
fn run(source: &str) -> Result<(), String> {
    let problems = |all: Vec<sedge_types::Problem>| format!("{all:?}");
    let erased = sedge_types::erase(source).map_err(problems)?;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("function.js");
    fs::write(&path, format!("{erased}\nexport function handle() {{}}\n")).unwrap();
    fs::write(dir.path().join("other.js"), "export const value = 1\nexport default 2\n").unwrap();
    let mut sandbox = Sandbox::new();
    sandbox.add_script_engine(Class::Small, &ENGINE).unwrap();
    let loaded = sandbox.load(&archive::pack(&path, None).unwrap(), LIMITS, Grants::default(), Arc::from([]));
    loaded.map(drop).map_err(|error| format!("{error:#}\nof\n{erased}"))
}

#[track_caller]
fn check(source: &str) {
    run(source).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_module_with_all_kinds_of_types_runs() {
    check(
        r#"import { alert, type Message, state } from "sedge"
import type { Outputs } from "sedge"
import other, { value, type Nothing } from "./other.js"
export type * from "./nowhere.ts"
declare const absent: number
type Reading = { value: number; unit?: string }
interface Source<T extends Reading = Reading> { [name: string]: T | unknown; read?(at: number): T }
namespace Types { export type A = 1; export interface B {} }
declare global { interface Window {} }

abstract class Base<T> implements Source {
  [name: string]: unknown
  static readonly made: string[] = []
  private readonly first: T
  protected second?: T
  third!: number
  declare fourth: string
  #fifth: number = 5
  abstract name(): string
  constructor(first: T)
  constructor(first: any, second?: T) { this.first = first; this.second = second }
  public get both(): [T, T | undefined] { return [this.first, this.second] }
  protected static async *all<U>(this: void, of: U[]): AsyncGenerator<U> { yield* of }
  sum(...all: number[]): number { return all.reduce<number>((a: number, b) => a + b, this.#fifth) }
}
class Derived extends Base<number> { override name(this: this): string { return `${this.third as number}` } }
function size(of: string): number
function size(of: unknown[]): number
function size(of: any): number { return of.length }

const check = (what: boolean, name: string = "no name"): asserts what => { if (!what) throw new Error(name) }
const derived = new Derived(1)
check(derived.both[0] === 1 && derived.sum(1, 2) === 8, "class")
check("third" in derived && !("fourth" in derived), "fields")
check(size("four") === 4 && size([]) === 0, "overloads")
check((derived as Base<number>).sum!(1) === 6, "assertions")
check(other === 2 && value as number === 1 satisfies number, "imports")
const of = <T,>(a: T): T => a, kinds = { a: 1 } as const satisfies Record<string, number>
check(of<number>(kinds.a) === 1, "generics")
function is(this: { a: number }, x?: unknown): x is number { return this.a === x }
check(is.call<any, any[], boolean>({ a: 1 }, 1), "this")
try { throw 1 } catch (error: unknown) { check(error === 1, "catch") }
const { a: renamed }: { a: number } = kinds
let [one, ...rest]: number[] = [1, 2, 3], last!: number
check(renamed + one + rest.length === 4 && last! === undefined, "patterns")
for (let at: number = 0; at < 1; at++) check(at === 0, "for")
label: for (const [key, found] of Object.entries(kinds) as [string, number][]) { check(key === "a" && found === 1); continue label }
export { type Reading, type Source as S, derived }
export default alert as unknown
"#,
    );
}

#[test]
fn what_is_refused_at_run_time_names_the_place_in_the_source() {
    let error =
        run("interface A {\n  b: number\n}\nconst a = { b: 1 } as A, text: string = 'ä'; null!.f<A>()").unwrap_err();
    // The place of `null`: the engine counts bytes.
    assert!(error.contains("(function.js:4:47)"), "{error}");
}

/// Types, as hard to skip as they come.
const TYPES: &[&str] = &[
    "number",
    "string[]",
    "{ a: 1; b?: 'x', (c: number): void }",
    "() => void",
    "(a: number,\n b?: string) => asserts a is 1",
    "new <T>(...a: T[]) => Array<Array<T>>",
    "`a${string}b`",
    "[a: number, b?: string, ...c: `}`[]]",
    "keyof typeof seen",
    "1 extends number ? '(' : \"[\"",
    "/* ; ( */ number",
    "number // ' (\n  | string",
    "'ä€😀'",
    "{ readonly [K in 'a' as `${K}s`]-?: K }",
    "import('./other.js').A<1>",
    "Array<\n  number\n>",
    "infer_ & readonly string[]",
];

/// Statements. `@` stands for the number that is pushed to `seen`, and `%` for a type. A last `~`: the statement ends with a type
/// and has no semicolon.
const STATEMENTS: &[&str] = &[
    "let v@: % = seen.push(@) as %~",
    "const v@ = seen.push(@) satisfies %~",
    "(seen.push(@) as %);",
    "[seen.push(@) as %] satisfies %~",
    "`${seen.push(@) as %}`;",
    "[seen.push(@)].forEach((x: %, y?: %): % => x)!;",
    "interface I@<X = %> extends A<%>, B { a: %; b(c: %): % }",
    "type T@<X extends %> = %~",
    "declare const d@: %, e@: %~",
    "declare function f@<X>(a: %): %~",
    "declare class D@ { a: % }",
    "export type { T@ } from './gone.ts'~",
    "function f@(a: %): %\nfunction f@<X>(this: unknown, a?: %, ...b: any[]): % { return seen.push(@) as % }\nf@.call<1>(1);",
    "abstract class C@<X = %> implements A, B<%> {\n  a?: %\n  private ['b']: % = seen.push(@) as %\n  ['c']: % = 1 as %\n  \
     get: %\n  d() {}\n  static: %\n  *e() {}\n  protected *f<X>(a: %): % {}\n  abstract g(): %\n  declare h: %\n  \
     [i: string]: %\n  static j: % }\nnew C@<%>();",
    "const g@ = <X extends %>(a: %): % => seen.push(@)\ng@<%>(1)!;",
    "const h@ = async <\n  X,\n>(a: %, b?: %): Promise<%> => { seen.push(@) }\nh@(1 as %)!;",
    "function r@() { return <\n  X\n>(a: X): % => seen.push(@) }\nr@()<%>(1)!;",
    "if (seen.push(@) as %) seen.length as %\nelse 1 satisfies %~",
    "for (let i = 0 as %; i < 1; i++ as %) seen.push(@) as %~",
    "try { throw 1 as % } catch (e: unknown) { seen.push(@) }",
    "const i@ = () => 1 as %\nlet j@!: %, k@: % = seen.push(@)!;",
];

fn statement() -> impl Strategy<Value = (&'static str, Vec<&'static str>)> {
    (select(STATEMENTS), proptest::collection::vec(select(TYPES), 17))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn statements_run_as_they_stand_in_the_source(statements in proptest::collection::vec(statement(), 1..8)) {
        let (mut source, mut expected) = ("const seen: number[] = [];\n".to_owned(), Vec::new());
        for (number, (statement, types)) in statements.iter().enumerate() {
            let text = statement.strip_suffix('~').unwrap_or(statement).replace('@', &number.to_string());
            let mut types = types.iter().cycle();
            for (part, text) in text.split('%').enumerate() {
                if part > 0 {
                    source.push_str(types.next().unwrap());
                }
                source.push_str(text);
            }
            source.push('\n');
            if statement.contains("push") {
                expected.push(number.to_string());
            }
        }
        let erased = sedge_types::erase(&source).map_err(|problems| TestCaseError::fail(format!("{problems:?}\nof\n{source}")))?;
        prop_assert_eq!(erased.len(), source.len());
        let breaks = |text: &str| text.match_indices(['\n', '\r']).map(|(at, _)| at).collect::<Vec<_>>();
        prop_assert_eq!(breaks(&erased), breaks(&source));
        let check = format!("if (seen.join() !== '{}') throw new Error('ran ' + seen.join())", expected.join(","));
        run(&format!("{source}\n;{check}")).map_err(TestCaseError::fail)?;
    }
}

//! What is left of each piece of syntax, and what is refused. `host/ctl/tests/erased.rs` runs what is left.

use super::*;

/// Erases, and checks that lengths and line breaks are kept.
#[track_caller]
fn erased(source: &str) -> String {
    let erased = erase(source).unwrap_or_else(|problems| panic!("{source}: {problems:?}"));
    assert_eq!(erased.len(), source.len(), "{erased}");
    let breaks = |text: &str| text.match_indices(text::is_line_break).map(|(at, _)| at).collect::<Vec<_>>();
    assert_eq!(breaks(&erased), breaks(source), "{erased}");
    erased
}

/// Each run of spaces counts as one.
#[track_caller]
fn check(source: &str, expected: &str) {
    let squeeze = |text: &str| {
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(squeeze(&erased(source)), squeeze(expected), "{source}");
}

#[track_caller]
fn check_refused(source: &str, line: usize, column: usize, what: &str) {
    let problems = erase(source).expect_err(source);
    let found = problems.iter().any(|it| (it.line, it.column) == (line, column) && it.what.contains(what));
    assert!(found, "{source}: {problems:?}");
}

#[test]
fn javascript_stays_as_it_is() {
    let source = "#!/usr/bin/env node\n'use strict';\nimport a, { b as c } from './x.js'\nlet type = 1, of = a < c, as = `${type}`\n\
                  type\n++as\nexport { of as default }\nlabel: for (const x of [1]) { if (x) continue label }\n";
    assert_eq!(erased(source), source);
}

#[test]
fn places_stay_the_same() {
    let source = "const a: Map<string, number> = new Map<string, number>()  // a: string\n";
    assert_eq!(erased(source), "const a                      = new Map                ()  // a: string\n");
    // In characters as well: `ä` and `€` leave white space of as many bytes.
    let source = "let a: 'ä€' = f(\n  /* € */ b as 'ö', c)";
    assert_eq!(erased(source), "let a   \u{a0}\u{2003}  = f(\n  /* € */ b     \u{a0} , c)");
    assert_eq!(erased("let a: '😀\u{2028}' = 1").chars().count(), "let a: '😀\u{2028}' = 1".chars().count() + 1);
}

#[test]
fn annotations_are_erased() {
    check("let a: number, b: string[] = [], c!: Date", "let a , b = [], c ;");
    check("function f(a: number, b?: string, ...c: any[]): void {}", "function f(a , b , ...c ) {}");
    check(
        "function f({ a }: { a: number } = { a: 1 }, [b]: [number] = [2]) {}",
        "function f({ a } = { a: 1 }, [b] = [2]) {}",
    );
    check("function f(this: Foo, a: number) {}", "function f( a ) {}");
    check("function f(this: Foo) {}", "function f( ) {}");
    check("function f(a /* : */ ? /* ? */ : number) {}", "function f(a /* : */ /* ? */ ) {}");
    check("function f(x: unknown): x is string { return true }", "function f(x ) { return true }");
    check("function f(x: unknown): asserts x is string {}", "function f(x ) {}");
    check("try {} catch (e: unknown) {}", "try {} catch (e ) {}");
    check(
        "const o = { f<T>(a: T): T { return a }, get g(): number { return 1 }, async *h<T>(): any {} }",
        "const o = { f (a ) { return a }, get g() { return 1 }, async *h () {} }",
    );
}

#[test]
fn generics_are_erased() {
    check("function f<T extends { a: 1 }, const U = T>(a: T) {}", "function f (a ) {}");
    check("class A<T> extends B<T> {}", "class A extends B {}");
    check("f<number>(1); new F<A<B<C>>>(2); new G<A>; a?.<T>(b)", "f (1); new F (2); new G ; a?. (b)");
    check("tag<T>`x`; const g = f<string>; (g<number>).name", "tag `x`; const g = f ; (g ).name");
    check(
        "const f = <T,>(a: T) => a, g = async <T>(a: T): Promise<T> => a",
        "const f = (a ) => a, g = async (a ) => a",
    );
    // These are comparisons.
    check("f(a < b, c > (d))", "f(a (d))");
    check("a < b > c; a < b && c > d", "a < b > c; a < b && c > d");
}

#[test]
fn assertions_are_erased() {
    check("const a = b as T, c = d as const, e = f satisfies T;", "const a = b , c = d , e = f ;");
    check("a!.b!().c![0]; d! = 1; e!++", "a .b ().c [0]; d = 1; e ++");
    check("(a as T) = 1; [(b as T)] = [2]; for (x as T of y) {}", "(a ) = 1; [(b )] = [2]; for (x of y) {}");
    check("f(a as T, ...(b as U[])); `${c as string}`; d ? e as T : f as U;", "f(a , ...(b )); `${c }`; d ? e : f ;");
    check("const a = b as any as T ? 1 : 2", "const a = b ? 1 : 2");
    check("const f = () => ({}) as T;", "const f = () => ({}) ;");
}

#[test]
fn declarations_of_types_leave_a_semicolon() {
    check("type A = { b: 1; c(): void }\nlet a", "; \nlet a");
    check(
        "interface A<T> extends B, C<T> { (a: T): void; new (a: T): A<T>; readonly b?: T; [key: string]: unknown }",
        ";",
    );
    check(
        "declare const a: number, b: string; declare function f(a: number): void\ndeclare class A { b: number }",
        "; ;\n;",
    );
    check("declare module 'x' { export const a: number }\ndeclare global { interface A {} }", ";\n;");
    check("declare enum A { B }\ndeclare const enum C { D }\ndeclare namespace E { const f: number }", ";\n;\n;");
    check("namespace A { type B = 1; export interface C {} namespace D.E { } }", ";");
    check(
        "export type A = 1\nexport interface B {}\nexport declare const c: number\nexport default interface D {}",
        ";\n;\n;\n;",
    );
    check(
        "function f(a: string): void\nfunction f(a: number): void;\nfunction f(a: any) {}",
        ";\n;\nfunction f(a ) {}",
    );
    check(
        "export default function f(a: string): void\nexport default function f(a: any) {}",
        ";\nexport default function f(a ) {}",
    );
    check("async function f(): Promise<void>;\nasync function f() {}", ";\nasync function f() {}");
    check("let type = 1\ntype\ntype = 2", "let type = 1\ntype\ntype = 2");
}

#[test]
fn imports_and_exports_of_types_are_erased() {
    check("import type A from './a.ts'\nimport type { B } from './b.ts'; import type * as C from './c.ts'", ";\n; ;");
    check("import { type A, b, type C as D, e, type F } from './a.ts'", "import { b, e, } from './a.ts'");
    check(
        "import a, { type B } from './a.ts'; import { type C } from './c.ts'",
        "import a, { } from './a.ts'; import { } from './c.ts'",
    );
    check("import { type as as } from './a.ts'", "import { type as as } from './a.ts'");
    check(
        "import type from './a.ts'; import { type } from './b.ts'",
        "import type from './a.ts'; import { type } from './b.ts'",
    );
    check("export type { A } from './a.ts'\nexport type * from './a.ts'\nexport type * as B from './a.ts'", ";\n;\n;");
    check("export { type A, b }; export { type C } from './c.ts'", "export { b }; export { } from './c.ts'");
    check(
        "import type A = require('x'); import b from './b.json' with { type: 'json' }",
        "; import b from './b.json' with { type: 'json' }",
    );
    check("type A = import('./a.ts').B; const c = import('./a.ts')", "; const c = import('./a.ts')");
}

#[test]
fn of_classes_the_types_are_erased() {
    check("abstract class A { abstract b: number; abstract c(): void; d() {} }", "class A { ; ; d() {} }");
    check(
        "export abstract class A {}\nexport default abstract class B {}",
        "export class A {}\nexport default class B {}",
    );
    check(
        "class A implements B, C<D> {}\nclass E extends F<'implements x'> implements G {}",
        "class A {}\nclass E extends F {}",
    );
    check("const a = class implements B {}", "const a = class {}");
    check(
        "class A { private a = 1; protected readonly b; public static c = 2; static readonly d = 3; override e() {} }",
        "class A { ; a = 1; ; b; ; static c = 2; static d = 3; ; e() {} }",
    );
    check(
        "class A { a?: number; b!: string; c?() {} ; declare d: number; [e: string]: any; static [f: string]: any }",
        "class A { a ; b ; c () {} ; ; ; ; }",
    );
    check(
        "class A { constructor(a: string); constructor(a: any) {} f(): void; f(a?: number) {} }",
        "class A { ; constructor(a ) {} ; f(a ) {} }",
    );
    check(
        "class A { get a(): number { return 1 } set a(b: number) {} static async *c<T>(): any {} static { let d: T } #e: T = 1 }",
        "class A { get a() { return 1 } set a(b ) {} static async *c () {} static { let d; } #e = 1 }",
    );
    // Names that are modifiers elsewhere.
    check(
        "class A { readonly = 1; declare() {} public; static; abstract: number; get: T }",
        "class A { readonly = 1; declare() {} public; static; abstract ; get; }",
    );
    check(
        "class A { private get a() { return 1 } private async b() {} private *c() {} private ['d'] = 1 }",
        "class A { ; get a() { return 1 } ; async b() {} ; *c() {} ; ['d'] = 1 }",
    );
}

#[test]
fn a_line_that_begins_with_a_bracket_stays_a_statement_of_its_own() {
    check("let a = b as T\n(c)", "let a = b ;\n(c)");
    check("a = b satisfies T\n[c].d()", "a = b ;\n[c].d()");
    check("let a = b as T // why\n`c`", "let a = b ; // why\n`c`");
    check("const f = () => a as T\n(b)", "const f = () => a ;\n(b)");
    check("return_: { a as T\n(b) }", "return_: { a ;\n(b) }");
    check("if (a) b as T\nelse c as U\n(d)", "if (a) b ;\nelse c ;\n(d)");
    check("export default a as T\n(b)", "export default a ;\n(b)");
    check("a = b\ninterface C {}\n(d)", "a = b\n;\n(d)");
    check("a = b\ntype C = 1\n[d]", "a = b\n;\n[d]");
    check(
        "class A { a = 1 as T\n['b'] = 2\nget: T\nc() {}\nd?: T\n*e() {}\nprivate f = 3\nprivate ['g'] = 4 }",
        "class A { a = 1 ;\n['b'] = 2\nget;\nc() {}\nd ;\n*e() {}\n; f = 3\n; ['g'] = 4 }",
    );
    // Both languages call.
    check("a = b!\n(c)", "a = b\n(c)");
    check("a = (b as T)\n(c)", "a = (b )\n(c)");
    check("for (let a = b as T; a; a as U) c", "for (let a = b ; a; a ) c");
}

#[test]
fn parentheses_move_over_the_line_breaks_of_types() {
    check("const f = (a: T):\n  number => a", "const f = (a \n ) => a");
    check("const f = (a: T): {\n  b: 1\n} => a", "const f = (a \n\n) => a");
    check("function f() { return <T>\n(a: T) => a }", "function f() { return ( \n a ) => a }");
    check("const f = async <\n  T,\n>(a: T): Promise<\n  T\n> => a", "const f = async ( \n\n a \n\n) => a");
    check("const f = (a, // why\n) : T => a", "const f = (a, // why\n) => a");
}

#[test]
fn syntax_that_makes_code_is_refused_with_its_place() {
    check_refused("let a = 1\n  enum B { C }", 2, 3, "an enum makes code: write `const B = { ... } as const`");
    check_refused("const enum A { B }", 1, 1, "an enum makes code");
    check_refused("export enum A { B }", 1, 8, "an enum makes code");
    check_refused("namespace A { export const b = 1 }", 1, 1, "a namespace with values makes code");
    check_refused("namespace A.B { let c }", 1, 1, "a namespace with values makes code");
    check_refused("class A { constructor(b: T, private c: T) {} }", 1, 29, "a parameter property makes code");
    check_refused("class A { constructor(readonly c = 1) {} }", 1, 23, "a parameter property makes code");
    check_refused("import a = require('b')", 1, 1, "write `import a from");
    check_refused("import a = B.C", 1, 1, "write `const a = ...`");
    check_refused("export = 1", 1, 1, "write `export default`");
    check_refused("/* ä */ @a class B { @c d; @e f() {} g(@h i) {} }", 1, 9, "decorators make code");
    check_refused("let a = <T>b", 1, 9, "write `value as T`");
    check_refused("class A { accessor b = 1 }", 1, 11, "write a getter and a setter");
    check_refused("let a: = 1", 1, 8, "");
    check_refused("let a = {", 1, 10, "");
    let all = erase("enum A {}\nnamespace B { let c }\nenum D {}").unwrap_err();
    assert_eq!(all.iter().map(|it| it.line).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn a_type_that_is_imported_or_exported_like_a_value_is_refused() {
    let source = "import { alert, Message } from 'sedge'\nexport function handle(message: Message) { return alert }";
    check_refused(
        source,
        1,
        17,
        "`Message` is used as a type only, and types are gone when the function runs: write `import { type Message }`",
    );
    check_refused("import A from './a.ts'\nlet b: A", 1, 8, "write `import type A`");
    check_refused("import * as A from './a.ts'\nlet b: A.B", 1, 8, "write `import type * as A`");
    check_refused("import { A } from './a.ts'\nclass B implements A {}", 1, 10, "import { type A }");
    check_refused("import { a } from './a.ts'\nlet b: typeof a", 1, 10, "import { type a }");
    check_refused("interface A {}\nlet b\nexport { b, A }", 3, 13, "write `export { type A }`");
    // Values, or perhaps for a side effect.
    check("import { A } from './a.ts'\nlet b: A = new A()", "import { A } from './a.ts'\nlet b = new A()");
    check("import { A } from './a.ts'", "import { A } from './a.ts'");
    check("interface A {}\nconst A = 1\nexport { A }", ";\nconst A = 1\nexport { A }");
}

#[test]
fn deep_nesting_needs_no_deep_stack_of_the_caller() {
    let source = format!(
        "let a: {}number{} = {}1{}",
        "Array<".repeat(2000),
        ">".repeat(2000),
        "(".repeat(2000),
        ")".repeat(2000)
    );
    assert!(erased(&source).ends_with(&format!("= {}1{}", "(".repeat(2000), ")".repeat(2000))));
}

//! The pass over a parsed module that overwrites its types.

use oxc_ast::ast::{
    AccessorProperty, ArrowFunctionExpression, BindingIdentifier, Class, Declaration, Decorator, ExportAllDeclaration,
    ExportDeclaration, ExportDefaultDeclaration, ExportDefaultDeclarationKind, ExportFromDeclaration,
    ExportNamedDeclaration, FormalParameter, IdentifierReference, ImportDeclaration, ImportDeclarationSpecifier,
    MethodDefinition, PropertyDefinition, PropertyDefinitionType, Statement, TSAsExpression, TSEnumDeclaration,
    TSExportAssignment, TSImportEqualsDeclaration, TSIndexSignature, TSInterfaceDeclaration, TSModuleReference,
    TSNamespaceDeclaration, TSNamespaceDeclarationBody, TSNamespaceExportDeclaration, TSNonNullExpression,
    TSSatisfiesExpression, TSThisParameter, TSTypeAliasDeclaration, TSTypeAnnotation, TSTypeAssertion,
    TSTypeParameterDeclaration, TSTypeParameterInstantiation, VariableDeclarator,
};
use oxc_ast_visit::{Visit, walk};
use oxc_span::{GetSpan as _, Span};

use super::names::Names;
use super::text::Text;

pub(crate) struct Eraser<'a> {
    text: Text<'a>,
    names: Names<'a>,
    /// With their byte offsets.
    problems: Vec<(u32, String)>,
    /// How many types lie around the node. What is within one is overwritten already.
    depth: u32,
    /// Start of the statement.
    statement: u32,
}

impl<'a> Eraser<'a> {
    pub(crate) fn new(text: Text<'a>) -> Self {
        Self { text, names: Names::default(), problems: Vec::new(), depth: 0, statement: 0 }
    }

    /// The module without its types, or all problems.
    pub(crate) fn finish(mut self) -> Result<String, Vec<(u32, String)>> {
        self.problems.extend(self.names.problems());
        if self.problems.is_empty() { Ok(self.text.into_output()) } else { Err(self.problems) }
    }

    fn refuse(&mut self, span: Span, what: &str) {
        if self.depth == 0 {
            self.problems.push((span.start, what.into()));
        }
    }

    /// Overwrites a type. `inside` visits it, for its names.
    fn erase(&mut self, span: Span, inside: impl FnOnce(&mut Self)) {
        if self.depth == 0 {
            self.text.blank(range(span));
        }
        self.depth += 1;
        inside(self);
        self.depth -= 1;
    }

    /// Overwrites a statement, or a member of a class. A semicolon is left: without it, what stands before it and a next line that
    /// begins with `(` or `[` would be one expression.
    fn erase_statement(&mut self, span: Span, inside: impl FnOnce(&mut Self)) {
        self.erase(span, inside);
        if self.depth == 0 {
            self.text.put(span.start as usize, b';');
        }
    }

    /// Overwrites an item of a list, with the comma behind it.
    fn erase_item(&mut self, span: Span) {
        let comma = self.text.token(span.end as usize);
        let end = if self.text.is_at(comma, ",") { comma as u32 + 1 } else { span.end };
        self.erase(Span::new(span.start, end), |_| {});
    }

    /// Overwrites `?` or `!` behind a name.
    fn erase_mark(&mut self, name: Span) {
        let at = self.text.token(name.end as usize) as u32;
        self.erase(Span::new(at, at + 1), |_| {});
    }

    /// Overwrites ` as T` behind an expression.
    fn erase_behind(&mut self, expression: Span, end: u32, inside: impl FnOnce(&mut Self)) {
        let at = self.text.token(expression.end as usize) as u32;
        self.erase(Span::new(at, end), inside);
    }

    /// Finds a word before a place, from another on.
    fn find_word(&self, word: &str, from: u32, before: u32) -> Option<u32> {
        let mut at = self.text.token(from as usize);
        while at < before as usize {
            let found = self.text.word(at);
            if found == word {
                return Some(at as u32);
            }
            at = self.text.token(at + found.len().max(1));
        }
        None
    }

    /// Overwrites the modifiers before the name of a member.
    fn erase_modifiers(&mut self, member: Span, key: Span) {
        let (mut at, mut is_first) = (self.text.token(member.start as usize), true);
        while at < key.start as usize {
            let word = self.text.word(at);
            let end = at + word.len();
            if is_modifier(word) && self.depth == 0 {
                self.text.blank(at..end);
                // The member before may have no semicolon, and this name may begin with `[` or `*`.
                if is_first {
                    self.text.put(at, b';');
                }
            }
            if word.is_empty() {
                break;
            }
            is_first = false;
            at = self.text.token(end);
        }
    }

    /// Where the name of a member ends, with the bracket of one that is computed.
    fn key_end(&self, key: Span, computed: bool) -> Span {
        let bracket = self.text.token(key.end as usize);
        let end = if computed && self.text.is_at(bracket, "]") { bracket as u32 + 1 } else { key.end };
        Span::new(key.start, end)
    }

    /// `(` must be on the line of the word before it (`async`, `return`), and `)` on that of `=>`: they move over the line breaks
    /// of the types between.
    fn move_parentheses(&mut self, arrow: &ArrowFunctionExpression<'a>) {
        let (open, close) = (arrow.params.span.start as usize, arrow.params.span.end as usize - 1);
        if let Some(types) = &arrow.type_parameters
            && self.text.has_line_break(types.span.start as usize..open)
        {
            self.text.put(open, b' ');
            self.text.put(types.span.start as usize, b'(');
        }
        if let Some(returned) = &arrow.return_type
            && self.text.has_line_break(close..returned.span.end as usize)
        {
            let last = self.text.get(range(returned.span)).char_indices().next_back().map_or(0, |(at, _)| at);
            self.text.put(close, b' ');
            self.text.put(returned.span.start as usize + last, b')');
        }
    }

    fn name(&self, span: Span) -> &'a str {
        self.text.get(range(span))
    }
}

impl<'a> Visit<'a> for Eraser<'a> {
    fn visit_statement(&mut self, it: &Statement<'a>) {
        let span = it.span();
        self.statement = span.start;
        walk::walk_statement(self, it);
        if self.depth == 0 {
            self.text.end_at(span.end as usize);
        }
    }

    fn visit_declaration(&mut self, it: &Declaration<'a>) {
        match is_type(it) {
            true => self.erase_statement(it.span(), |eraser| walk::walk_declaration(eraser, it)),
            false => walk::walk_declaration(self, it),
        }
    }

    fn visit_export_declaration(&mut self, it: &ExportDeclaration<'a>) {
        match is_type(&it.declaration) {
            true => self.erase_statement(it.span, |eraser| walk::walk_export_declaration(eraser, it)),
            false => walk::walk_export_declaration(self, it),
        }
    }

    fn visit_export_default_declaration(&mut self, it: &ExportDefaultDeclaration<'a>) {
        let is_type = match &it.declaration {
            ExportDefaultDeclarationKind::TSInterfaceDeclaration(_) => true,
            ExportDefaultDeclarationKind::FunctionDeclaration(function) => function.body.is_none(),
            _ => false,
        };
        match is_type {
            true => self.erase_statement(it.span, |eraser| walk::walk_export_default_declaration(eraser, it)),
            false => walk::walk_export_default_declaration(self, it),
        }
    }

    fn visit_import_declaration(&mut self, it: &ImportDeclaration<'a>) {
        if it.import_kind.is_type() {
            return self.erase_statement(it.span, |_| {});
        }
        for specifier in it.specifiers.iter().flatten() {
            match specifier {
                ImportDeclarationSpecifier::ImportSpecifier(one) if one.import_kind.is_type() => {
                    self.erase_item(one.span);
                }
                ImportDeclarationSpecifier::ImportSpecifier(one) => {
                    let name = self.name(one.local.span);
                    self.names.import(name, one.span.start, "import { type NAME }");
                }
                ImportDeclarationSpecifier::ImportDefaultSpecifier(one) => {
                    let name = self.name(one.local.span);
                    self.names.import(name, one.span.start, "import type NAME");
                }
                ImportDeclarationSpecifier::ImportNamespaceSpecifier(one) => {
                    let name = self.name(one.local.span);
                    self.names.import(name, one.span.start, "import type * as NAME");
                }
            }
        }
    }

    fn visit_export_named_declaration(&mut self, it: &ExportNamedDeclaration<'a>) {
        if it.export_kind.is_type() {
            return self.erase_statement(it.span, |_| {});
        }
        for specifier in &it.specifiers {
            if specifier.export_kind.is_type() {
                self.erase_item(specifier.span);
            } else {
                let name = self.name(specifier.local.span());
                self.names.export(name, specifier.span.start);
                self.names.values.insert(name);
            }
        }
    }

    fn visit_export_from_declaration(&mut self, it: &ExportFromDeclaration<'a>) {
        if it.export_kind.is_type() {
            return self.erase_statement(it.span, |_| {});
        }
        for specifier in it.specifiers.iter().filter(|specifier| specifier.export_kind.is_type()) {
            self.erase_item(specifier.span);
        }
    }

    fn visit_export_all_declaration(&mut self, it: &ExportAllDeclaration<'a>) {
        if it.export_kind.is_type() {
            self.erase_statement(it.span, |_| {});
        }
    }

    fn visit_class(&mut self, it: &Class<'a>) {
        if it.r#abstract
            && let Some(at) = self.find_word("abstract", self.statement.min(it.span.start), it.body.span.start)
        {
            self.erase(Span::sized(at, "abstract".len() as u32), |_| {});
        }
        self.visit_decorators(&it.decorators);
        if let Some(id) = &it.id {
            self.visit_binding_identifier(id);
        }
        if let Some(types) = &it.type_parameters {
            self.visit_ts_type_parameter_declaration(types);
        }
        if let Some(heritage) = &it.heritage {
            self.visit_class_heritage(heritage);
        }
        if let (Some(first), Some(last)) = (it.implements.first(), it.implements.last()) {
            let keyword = self.find_word("implements", head_end(it), first.span.start);
            let span = Span::new(keyword.unwrap_or(first.span.start), last.span.end);
            self.erase(span, |eraser| eraser.visit_ts_class_implements_list(&it.implements));
        }
        self.visit_class_body(&it.body);
    }

    fn visit_method_definition(&mut self, it: &MethodDefinition<'a>) {
        if it.value.body.is_none() {
            // An overload, or abstract.
            return self.erase_statement(it.span, |eraser| walk::walk_method_definition(eraser, it));
        }
        let key = self.key_end(it.key.span(), it.computed);
        self.erase_modifiers(it.span, key);
        if it.optional {
            self.erase_mark(key);
        }
        walk::walk_method_definition(self, it);
    }

    fn visit_property_definition(&mut self, it: &PropertyDefinition<'a>) {
        if it.declare || it.r#type == PropertyDefinitionType::TSAbstractPropertyDefinition {
            return self.erase_statement(it.span, |eraser| walk::walk_property_definition(eraser, it));
        }
        let key = self.key_end(it.key.span(), it.computed);
        self.erase_modifiers(it.span, key);
        if it.optional || it.definite {
            self.erase_mark(key);
        }
        walk::walk_property_definition(self, it);
        if self.depth == 0 {
            self.text.end_at(it.span.end as usize);
        }
    }

    fn visit_accessor_property(&mut self, it: &AccessorProperty<'a>) {
        self.refuse(it.span, "the engine has no `accessor` fields: write a getter and a setter");
    }

    fn visit_ts_index_signature(&mut self, it: &TSIndexSignature<'a>) {
        self.erase_statement(it.span, |eraser| walk::walk_ts_index_signature(eraser, it));
    }

    fn visit_decorator(&mut self, it: &Decorator<'a>) {
        self.refuse(it.span, "decorators make code, and the engine has none: call the function instead");
    }

    fn visit_formal_parameter(&mut self, it: &FormalParameter<'a>) {
        if it.accessibility.is_some() || it.readonly || it.r#override {
            let fix = "a parameter property makes code: declare the field, and assign to it in the constructor";
            self.refuse(it.span, fix);
        }
        if it.optional {
            self.erase_mark(it.pattern.span());
        }
        walk::walk_formal_parameter(self, it);
    }

    fn visit_variable_declarator(&mut self, it: &VariableDeclarator<'a>) {
        if it.definite {
            self.erase_mark(it.id.span());
        }
        walk::walk_variable_declarator(self, it);
    }

    fn visit_arrow_function_expression(&mut self, it: &ArrowFunctionExpression<'a>) {
        walk::walk_arrow_function_expression(self, it);
        if self.depth == 0 {
            self.move_parentheses(it);
        }
    }

    fn visit_ts_this_parameter(&mut self, it: &TSThisParameter<'a>) {
        self.erase_item(it.span);
        self.erase(it.span, |eraser| walk::walk_ts_this_parameter(eraser, it));
    }

    fn visit_ts_type_annotation(&mut self, it: &TSTypeAnnotation<'a>) {
        self.erase(it.span, |eraser| walk::walk_ts_type_annotation(eraser, it));
    }

    fn visit_ts_type_parameter_declaration(&mut self, it: &TSTypeParameterDeclaration<'a>) {
        self.erase(it.span, |eraser| walk::walk_ts_type_parameter_declaration(eraser, it));
    }

    fn visit_ts_type_parameter_instantiation(&mut self, it: &TSTypeParameterInstantiation<'a>) {
        self.erase(it.span, |eraser| walk::walk_ts_type_parameter_instantiation(eraser, it));
    }

    fn visit_ts_as_expression(&mut self, it: &TSAsExpression<'a>) {
        self.visit_expression(&it.expression);
        let expression = it.expression.span();
        self.erase_behind(expression, it.span.end, |eraser| eraser.visit_ts_type(&it.type_annotation));
    }

    fn visit_ts_satisfies_expression(&mut self, it: &TSSatisfiesExpression<'a>) {
        self.visit_expression(&it.expression);
        let expression = it.expression.span();
        self.erase_behind(expression, it.span.end, |eraser| eraser.visit_ts_type(&it.type_annotation));
    }

    fn visit_ts_non_null_expression(&mut self, it: &TSNonNullExpression<'a>) {
        self.visit_expression(&it.expression);
        self.erase_behind(it.expression.span(), it.span.end, |_| {});
    }

    fn visit_ts_type_assertion(&mut self, it: &TSTypeAssertion<'a>) {
        // `() => <T>{}` would become a function without a result, and `return <T>` at the end of a line return nothing.
        self.refuse(it.span, "`<T>value` cannot be erased in its place: write `value as T`");
        self.visit_expression(&it.expression);
    }

    fn visit_ts_enum_declaration(&mut self, it: &TSEnumDeclaration<'a>) {
        let name = self.name(it.id.span);
        self.refuse(it.span, &format!("an enum makes code: write `const {name} = {{ ... }} as const`"));
    }

    fn visit_ts_namespace_declaration(&mut self, it: &TSNamespaceDeclaration<'a>) {
        self.refuse(it.span, "a namespace with values makes code: write a module, in a file of its own");
    }

    fn visit_ts_import_equals_declaration(&mut self, it: &TSImportEqualsDeclaration<'a>) {
        let name = self.name(it.id.span);
        let fix = match it.module_reference {
            TSModuleReference::ExternalModuleReference(_) => format!("write `import {name} from \"...\"`"),
            _ => format!("write `const {name} = ...`, or `type {name} = ...`"),
        };
        self.refuse(it.span, &format!("`import {name} =` makes code: {fix}"));
    }

    fn visit_ts_export_assignment(&mut self, it: &TSExportAssignment<'a>) {
        self.refuse(it.span, "`export =` is not for modules: write `export default`");
    }

    fn visit_ts_namespace_export_declaration(&mut self, it: &TSNamespaceExportDeclaration<'a>) {
        self.refuse(it.span, "`export as namespace` is for declarations of others: leave it out");
    }

    fn visit_ts_type_alias_declaration(&mut self, it: &TSTypeAliasDeclaration<'a>) {
        let name = self.name(it.id.span);
        self.names.declared_types.insert(name);
        walk::walk_ts_type_alias_declaration(self, it);
    }

    fn visit_ts_interface_declaration(&mut self, it: &TSInterfaceDeclaration<'a>) {
        let name = self.name(it.id.span);
        self.names.declared_types.insert(name);
        walk::walk_ts_interface_declaration(self, it);
    }

    fn visit_binding_identifier(&mut self, it: &BindingIdentifier<'a>) {
        if self.depth == 0 {
            let name = self.name(it.span);
            self.names.declared_values.insert(name);
        }
    }

    fn visit_identifier_reference(&mut self, it: &IdentifierReference<'a>) {
        let name = self.name(it.span);
        let names = if self.depth == 0 { &mut self.names.values } else { &mut self.names.types };
        names.insert(name);
    }
}

/// Where the head of a class ends, without the interfaces that it implements.
fn head_end(class: &Class<'_>) -> u32 {
    let heritage = class.heritage.as_ref().map(|heritage| {
        let types = heritage.type_arguments.as_ref().map(|types| types.span.end);
        types.unwrap_or(heritage.expression.span().end)
    });
    let types = class.type_parameters.as_ref().map(|types| types.span.end);
    let id = class.id.as_ref().map(|id| id.span.end);
    heritage.or(types).or(id).unwrap_or(class.span.start)
}

fn range(span: Span) -> std::ops::Range<usize> {
    span.start as usize..span.end as usize
}

fn is_modifier(word: &str) -> bool {
    matches!(word, "public" | "private" | "protected" | "readonly" | "override" | "abstract" | "declare")
}

/// Whether nothing is left of a declaration when the types are gone.
fn is_type(it: &Declaration<'_>) -> bool {
    match it {
        Declaration::TSTypeAliasDeclaration(_)
        | Declaration::TSInterfaceDeclaration(_)
        | Declaration::TSExternalModuleDeclaration(_)
        | Declaration::TSGlobalDeclaration(_) => true,
        Declaration::VariableDeclaration(it) => it.declare,
        Declaration::FunctionDeclaration(it) => it.declare || it.body.is_none(),
        Declaration::ClassDeclaration(it) => it.declare,
        Declaration::TSEnumDeclaration(it) => it.declare,
        Declaration::TSNamespaceDeclaration(it) => it.declare || has_only_types(&it.body),
        Declaration::TSImportEqualsDeclaration(it) => it.import_kind.is_type(),
    }
}

fn has_only_types(body: &TSNamespaceDeclarationBody<'_>) -> bool {
    match body {
        TSNamespaceDeclarationBody::TSNamespaceDeclaration(inner) => has_only_types(&inner.body),
        TSNamespaceDeclarationBody::TSModuleBlock(block) => block.body.iter().all(|statement| match statement {
            Statement::ExportDeclaration(it) => is_erasable(&it.declaration),
            Statement::EmptyStatement(_) => true,
            statement => statement.as_declaration().is_some_and(is_erasable),
        }),
    }
}

/// What `tsc` takes in a namespace that has no values. `declare const` counts as one.
fn is_erasable(it: &Declaration<'_>) -> bool {
    match it {
        Declaration::TSTypeAliasDeclaration(_) | Declaration::TSInterfaceDeclaration(_) => true,
        Declaration::TSNamespaceDeclaration(it) => has_only_types(&it.body),
        _ => false,
    }
}

//! Rules about how the files of a package hang together and how its types are named, read from
//! their syntax.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use syn::visit::{self, Visit};

/// A struct with more fields has several jobs. What is only read or written as a whole may be
/// larger: configuration, figures, and what travels.
const FIELDS_MAX: usize = 15;
const WHOLES: [&str; 5] = ["Config", "Options", "Stats", "Report", "Flags"];

/// A module's place in its package.
type Module = Vec<String>;

/// The files of a package by module, and what each refers to.
#[derive(Default)]
struct Package {
    modules: BTreeMap<Module, Names>,
}

/// What a file refers to.
#[derive(Default)]
struct Names {
    /// What its `use` items bring in: the name, and the path behind it.
    uses: BTreeMap<String, Module>,
    /// Every path in it.
    paths: Vec<Module>,
    /// Structs with named fields, and how many.
    structs: Vec<(String, usize)>,
    /// Every type.
    types: Vec<String>,
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
    })
}

fn segments(path: &syn::Path) -> Module {
    path.segments.iter().map(|segment| segment.ident.to_string()).collect()
}

impl Names {
    fn of(text: &str) -> Self {
        let mut names = Self::default();
        names.visit_file(&syn::parse_file(text).unwrap());
        names
    }

    fn flatten(&mut self, before: &Module, tree: &syn::UseTree) {
        let with = |name: &syn::Ident| [before.as_slice(), &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.flatten(&with(&path.ident), &path.tree),
            syn::UseTree::Group(group) => {
                group.items.iter().for_each(|item| self.flatten(before, item));
            }
            syn::UseTree::Name(name) if name.ident == "self" => self.bring(before.clone(), None),
            syn::UseTree::Name(name) => self.bring(with(&name.ident), None),
            syn::UseTree::Rename(name) => self.bring(with(&name.ident), Some(&name.rename)),
            syn::UseTree::Glob(_) => self.paths.push(before.clone()),
        }
    }

    fn bring(&mut self, path: Module, name: Option<&syn::Ident>) {
        let name = name.map_or_else(|| path.last().cloned().unwrap(), ToString::to_string);
        self.paths.push(path.clone());
        self.uses.insert(name, path);
    }
}

impl<'ast> Visit<'ast> for Names {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !is_test(&item.attrs) {
            visit::visit_item_fn(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if !is_test(&item.attrs) {
            self.flatten(&Module::new(), &item.tree);
        }
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        self.types.push(item.ident.to_string());
        visit::visit_item_enum(self, item);
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        self.types.push(item.ident.to_string());
        if let syn::Fields::Named(fields) = &item.fields {
            self.structs.push((item.ident.to_string(), fields.named.len()));
        }
        visit::visit_item_struct(self, item);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.paths.push(segments(path));
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        // Their insides are no syntax: whatever in them looks like a path is one.
        let text = item.tokens.to_string();
        let mut words = text.split_whitespace().peekable();
        while let Some(word) = words.next() {
            let mut path = vec![word.to_owned()];
            while words.next_if_eq(&"::").is_some() {
                path.extend(words.next().map(str::to_owned));
            }
            if path.len() > 1 {
                self.paths.push(path);
            }
        }
    }
}

impl Package {
    fn read(root: &Path) -> Self {
        let mut package = Self::default();
        for path in files(root) {
            let relative = path.strip_prefix(root).unwrap().with_extension("");
            let mut module: Module =
                relative.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
            if matches!(module.last().unwrap().as_str(), "mod" | "lib" | "main") {
                module.pop();
            }
            if !module.iter().any(|part| part.contains("tests") || part == "bin") {
                package.modules.insert(module, Names::of(&fs::read_to_string(&path).unwrap()));
            }
        }
        package
    }

    /// The module that a path in a module leads to, if it is one of this package: where a name was
    /// brought in from elsewhere, the module it is from.
    fn lead(&self, from: &Module, path: &[String], depth: usize) -> Option<Module> {
        let (first, mut rest) = path.split_first()?;
        let mut at = match first.as_str() {
            "crate" => Module::new(),
            "self" => from.clone(),
            "super" => from.split_last()?.1.to_vec(),
            _ => return self.name(from, path, depth),
        };
        while let Some(("super", after)) = rest.split_first().map(|(a, b)| (a.as_str(), b)) {
            at.pop();
            rest = after;
        }
        if rest.is_empty() { Some(at) } else { self.name(&at, rest, depth).or(Some(at)) }
    }

    /// What a name means in a module.
    fn name(&self, at: &Module, path: &[String], depth: usize) -> Option<Module> {
        let (first, rest) = path.split_first()?;
        let child = [at.as_slice(), std::slice::from_ref(first)].concat();
        if self.modules.contains_key(&child) {
            return if rest.is_empty() {
                Some(child)
            } else {
                self.name(&child, rest, depth).or(Some(child))
            };
        }
        let brought = self.modules.get(at)?.uses.get(first)?;
        // A name that is brought in from a package of the same name ends here.
        (depth > 0 && brought.first() != Some(first)).then_some(())?;
        self.lead(at, &[brought.as_slice(), rest].concat(), depth - 1)
    }

    /// Which modules each module refers to, parents and children left out.
    fn arrows(&self) -> BTreeMap<&Module, BTreeSet<Module>> {
        let arrow = |(from, names): (&'_ Module, &Names)| {
            let to = names.paths.iter().filter_map(|path| self.lead(from, path, 8));
            to.filter(|to| !to.starts_with(from) && !from.starts_with(to)).collect()
        };
        self.modules.iter().map(|(from, names)| (from, arrow((from, names)))).collect()
    }

    /// A way from a module back to itself.
    fn circle(&self) -> Option<Vec<String>> {
        let arrows = self.arrows();
        for start in self.modules.keys() {
            let mut before: BTreeMap<&Module, &Module> = BTreeMap::new();
            let mut open = vec![start];
            while let Some(at) = open.pop() {
                for to in &arrows[at] {
                    let (to, _) = self.modules.get_key_value(to).unwrap();
                    if to == start {
                        let way = std::iter::successors(Some(at), |at| before.get(at).copied());
                        let mut way: Vec<String> = way.map(|at| at.join("::")).collect();
                        way.reverse();
                        return Some(way);
                    }
                    if !before.contains_key(to) {
                        before.insert(to, at);
                        open.push(to);
                    }
                }
            }
        }
        None
    }
}

fn files(root: &Path) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found
}

fn packages() -> Vec<(&'static str, Package)> {
    let roots = [
        "src",
        "ring/src",
        "node/src",
        "node/core/src",
        "node/proto/src",
        "node/control/src",
        "client/src",
        "client/tests/sim",
        "bench/src",
    ];
    let base = Path::new(env!("CARGO_MANIFEST_DIR"));
    roots.map(|root| (root, Package::read(&base.join(root)))).into()
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let circles =
        packages().into_iter().filter_map(|(root, package)| Some((root, package.circle()?)));
    let circles: Vec<_> = circles.collect();
    assert!(circles.is_empty(), "move what two of them need into a third: {circles:#?}");
}

#[test]
fn no_struct_is_a_bag_of_everything() {
    let mut bags = Vec::new();
    for (root, package) in packages() {
        for (module, names) in &package.modules {
            let large = names.structs.iter().filter(|(name, fields)| {
                *fields > FIELDS_MAX && !WHOLES.iter().any(|whole| name.ends_with(whole))
            });
            bags.extend(large.map(|found| (root, module.join("::"), found.clone())));
        }
    }
    assert!(bags.is_empty(), "more than {FIELDS_MAX} fields: {bags:#?}");
}

/// The types that the page of words names.
fn named_words() -> BTreeSet<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/architecture.md");
    let page = fs::read_to_string(page).unwrap();
    let section = page.split("## Words").nth(1).unwrap().split("\n## ").next().unwrap();
    let first_cells =
        section.lines().filter_map(|line| line.strip_prefix("| ")?.split(" |").next());
    let names = first_cells.flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned));
    names.filter(|name| !name.contains("::")).collect()
}

#[test]
fn a_word_names_one_thing() {
    let words = named_words();
    assert!(words.len() > 10, "where are the words? {words:?}");
    let mut defined: BTreeMap<&String, Vec<String>> = BTreeMap::new();
    let packages = packages();
    for (root, package) in &packages {
        for (module, names) in &package.modules {
            for name in names.types.iter().filter(|name| words.contains(*name)) {
                defined.entry(name).or_default().push(format!("{root}: {}", module.join("::")));
            }
        }
    }
    let twice: Vec<_> = defined.iter().filter(|(_, places)| places.len() > 1).collect();
    assert!(twice.is_empty(), "find another word for all but one of each: {twice:#?}");
    let nowhere: Vec<_> = words.iter().filter(|word| !defined.contains_key(word)).collect();
    assert!(nowhere.is_empty(), "no type has the name of a word: {nowhere:?}");
}

#[test]
fn circles_are_found_however_they_are_written() {
    let package = |files: &[(&str, &str)]| {
        let module = |name: &str| name.split("::").map(str::to_owned).collect::<Module>();
        let mut package = Package::default();
        package.modules.insert(Module::new(), Names::of("mod a; mod b; pub use b::Thing;"));
        for (name, text) in files {
            package.modules.insert(module(name), Names::of(text));
        }
        package.circle()
    };
    let uses_a = ("b", "use crate::a::{self, Other}; pub struct Thing;");
    let circle = Some(vec!["a".to_owned(), "b".to_owned()]);
    for text in [
        "use crate::b::Thing;",
        "use super::b;",
        "use super::{b as other};",
        "fn f() { crate::b::f() }",
        "fn f() -> super::b::Thing { todo() }",
        "fn f() { println!(\"{}\", crate::b::f()) }",
        "use crate::Thing;",
        "use super::*; fn f() { super::b::f() }",
    ] {
        assert_eq!(package(&[("a", text), uses_a]), circle, "{text}");
    }
    for text in ["use b::Thing;", "#[cfg(test)] mod tests { use crate::b; }", "use std::a::b;"] {
        assert_eq!(package(&[("a", text), uses_a]), None, "{text}");
    }
    let child = [("a", "mod c; use c::C;"), ("a::c", "use super::A; use crate::a::B;"), uses_a];
    assert_eq!(package(&child), None, "a parent and its child");
    let three = [("a", "use super::b;"), ("b", "use super::c;"), ("c", "use super::a;")];
    assert_eq!(package(&three).unwrap().len(), 3);
}

//! What programs see of the library, and the binary of the node, kept as a list, so that a change
//! of it is seen in review.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use quote::ToTokens;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use syn::{Fields, ImplItem, Item, UseTree, Visibility};

/// Every item of the files of a folder, and of those below it but for one.
fn items(folder: &Path, but: &Path, into: &mut Vec<Item>) {
    let mut paths: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if path == but {
        } else if path.is_dir() {
            items(&path, but, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.extend(syn::parse_file(&fs::read_to_string(&path).unwrap()).unwrap().items);
        }
    }
}

/// The names that a file exports.
fn exported(file: &Path) -> BTreeSet<String> {
    fn names(tree: &UseTree, into: &mut BTreeSet<String>) {
        match tree {
            UseTree::Path(path) => names(&path.tree, into),
            UseTree::Group(group) => group.items.iter().for_each(|item| names(item, into)),
            UseTree::Name(name) => {
                into.insert(name.ident.to_string());
            }
            other => panic!("names are exported one by one: {}", other.to_token_stream()),
        }
    }
    let mut found = BTreeSet::new();
    for item in syn::parse_file(&fs::read_to_string(file).unwrap()).unwrap().items {
        let own = match &item {
            Item::Use(item) if is_public(&item.vis) => {
                names(&item.tree, &mut found);
                continue;
            }
            Item::Struct(item) => (&item.vis, &item.ident),
            Item::Enum(item) => (&item.vis, &item.ident),
            _ => continue,
        };
        if is_public(own.0) {
            found.insert(own.1.to_string());
        }
    }
    found
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

fn text(tokens: &impl ToTokens) -> String {
    let text = tokens.to_token_stream().to_string();
    let joined = [
        (" ,", ","),
        (" :", ":"),
        (":: ", "::"),
        (" (", "("),
        ("& ", "&"),
        (" <", "<"),
        ("< ", "<"),
        (" >", ">"),
        ("- >", "->"),
        ("->", " ->"),
        ("  ->", " ->"),
        ("' ", "'"),
        (" ;", ";"),
    ];
    joined.iter().fold(text, |text, (from, to)| text.replace(from, to))
}

fn fields(fields: &Fields) -> String {
    let public = fields.iter().filter(|field| is_public(&field.vis));
    let public: Vec<_> =
        public.map(|field| format!("{}: {}", text(&field.ident), text(&field.ty))).collect();
    if public.is_empty() { String::new() } else { format!(" {{ {} }}", public.join(", ")) }
}

fn open_ended(attributes: &[syn::Attribute]) -> &'static str {
    if attributes.iter().any(|attribute| attribute.path().is_ident("non_exhaustive")) {
        ", .."
    } else {
        ""
    }
}

/// What there is of a type: its own line, then its variants, functions and traits.
fn lines(name: &str, items: &[Item]) -> Vec<String> {
    let mut lines = BTreeSet::new();
    for item in items {
        match item {
            Item::Struct(item) if item.ident == name => {
                let (inside, open) = (fields(&item.fields), open_ended(&item.attrs));
                lines.insert((0, format!("struct {name}{inside}{open}")));
            }
            Item::Enum(item) if item.ident == name => {
                lines.insert((0, format!("enum {name}{}", open_ended(&item.attrs))));
                lines.extend(item.variants.iter().map(|variant| (1, variant_line(variant))));
            }
            Item::Impl(item) if text(&item.self_ty) == name => match &item.trait_ {
                Some((_, of, _)) => {
                    lines.insert((3, format!("    impl {}", text(of))));
                }
                None => lines.extend(functions(item).map(|line| (2, line))),
            },
            _ => {}
        }
    }
    lines.into_iter().map(|(_, line)| line).collect()
}

fn variant_line(variant: &syn::Variant) -> String {
    let named = |field: &syn::Field| match &field.ident {
        Some(name) => format!("{}: {}", text(name), text(&field.ty)),
        None => text(&field.ty),
    };
    let inside = variant.fields.iter().map(named).collect::<Vec<_>>().join(", ");
    let inside = match &variant.fields {
        Fields::Unit => String::new(),
        Fields::Named(_) => format!(" {{ {inside} }}"),
        Fields::Unnamed(_) => format!("({inside})"),
    };
    format!("    {}{inside}{}", variant.ident, open_ended(&variant.attrs))
}

fn functions(item: &syn::ItemImpl) -> impl Iterator<Item = String> {
    item.items.iter().filter_map(|item| match item {
        ImplItem::Fn(function) if is_public(&function.vis) => {
            Some(format!("    {}", text(&function.sig)))
        }
        _ => None,
    })
}

fn surface() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let client = root.join("client/src");
    let (admin, node) = (client.join("admin"), root.join("node/src"));
    let mut found = String::new();
    for (prefix, folder, but, file) in [
        ("lockring::", &client, &admin, root.join("src/lib.rs")),
        ("lockring::admin::", &admin, &client, admin.join("mod.rs")),
        ("lockring_node::", &node, &node.join("tests"), node.join("lib.rs")),
    ] {
        let mut all = Vec::new();
        items(folder, but, &mut all);
        for name in exported(&file) {
            let lines = lines(&name, &all);
            // What is passed on from elsewhere, and modules.
            let own = lines.first().map_or(&name, |line| line);
            found += &format!("{}\n", own.replacen(&name, &format!("{prefix}{name}"), 1));
            found.extend(lines.iter().skip(1).map(|line| format!("{line}\n")));
        }
    }
    found
}

#[test]
fn the_public_surface_is_as_listed() {
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/surface.txt");
    let surface = surface();
    if std::env::var_os("SURFACE").is_some_and(|what| what == "write") {
        fs::write(&list, &surface).unwrap();
    }
    let listed = fs::read_to_string(&list).unwrap_or_default();
    let change = |from: &str, to: &str, sign: char| {
        let old: BTreeSet<_> = from.lines().collect();
        to.lines()
            .filter(|line| !old.contains(line))
            .map(|line| format!("{sign} {line}\n"))
            .collect::<String>()
    };
    assert!(
        listed == surface,
        "the public surface has changed; if that is meant, have it listed anew with \
         `SURFACE=write cargo test --test surface`:\n{}{}",
        change(&surface, &listed, '-'),
        change(&listed, &surface, '+')
    );
}

#!/usr/bin/env python3
"""Writes a CycloneDX 1.5 list of what is compiled into the program, to standard output: sbom.py TARGET [runtime]

Crates with licence and checksum as in Cargo.lock, and the SQLite in libsqlite3-sys. The same source gives the same bytes.
"""

import json
import os
import re
import subprocess
import sys


def metadata(target, variant):
    command = [os.environ.get("CARGO", "cargo"), "metadata", "--format-version", "1", "--locked", "--filter-platform", target]
    command += ["--manifest-path", "host/sedge/Cargo.toml"]
    command += ["--no-default-features"] if variant == "runtime" else []
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def checksums():
    """By name and version."""
    with open("Cargo.lock", encoding="utf-8") as lock:
        entries = re.findall(r'name = "(.*)"\nversion = "(.*)"\nsource = ".*"\nchecksum = "(.*)"', lock.read())
    return {(name, version): checksum for name, version, checksum in entries}


def compiled_in(graph):
    """Ids of the packages that the program is made of, and what each depends on. Tests and their crates are not."""
    nodes = {node["id"]: node for node in graph["resolve"]["nodes"]}
    root = graph["resolve"]["root"]
    edges, waiting = {}, [root]
    while waiting:
        package = waiting.pop()
        if package in edges:
            continue
        kinds = lambda dependency: {kind["kind"] for kind in dependency["dep_kinds"]}
        edges[package] = sorted(it["pkg"] for it in nodes[package]["deps"] if kinds(it) - {"dev"})
        waiting += edges[package]
    return root, edges


def main():
    target, variant = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "full"
    graph = metadata(target, variant)
    sums = checksums()
    packages = {package["id"]: package for package in graph["packages"]}
    root, edges = compiled_in(graph)
    reference = lambda id: f"pkg:cargo/{packages[id]['name']}@{packages[id]['version']}"

    def component(id):
        package = packages[id]
        name, version = package["name"], package["version"]
        found = {"type": "library", "bom-ref": reference(id), "name": name, "version": version, "purl": reference(id)}
        if package["license"]:
            found["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
        if (name, version) in sums:
            found["hashes"] = [{"alg": "SHA-256", "content": sums[name, version]}]
        return found

    components = [component(id) for id in edges if id != root]
    dependencies = [{"ref": reference(id), "dependsOn": sorted(map(reference, edges[id]))} for id in edges]
    for id in edges:
        if packages[id]["name"] == "libsqlite3-sys":
            header = os.path.join(os.path.dirname(packages[id]["manifest_path"]), "sqlite3", "sqlite3.h")
            with open(header, encoding="utf-8") as text:
                version = re.search(r'#define SQLITE_VERSION +"(.*)"', text.read()).group(1)
            purl = f"pkg:generic/sqlite@{version}"
            components.append({"type": "library", "bom-ref": purl, "name": "sqlite", "version": version, "purl": purl})
            next(it for it in dependencies if it["ref"] == reference(id))["dependsOn"].append(purl)
    by_reference = lambda it: it.get("bom-ref", it.get("ref"))
    answer = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {**component(root), "type": "application"},
            "properties": [{"name": "target", "value": target}, {"name": "build", "value": variant}],
        },
        "components": sorted(components, key=by_reference),
        "dependencies": sorted(dependencies, key=by_reference),
    }
    json.dump(answer, sys.stdout, indent=1, ensure_ascii=False)
    print()


main()

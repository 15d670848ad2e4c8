/* The files of a script, and what `import` makes of them. */
#include "engine.h"

/* In parts of this size the host keeps a memory (image.rs). */
#define IMAGE_PAGE 4096

/* The source of what scripts see, and behind its NUL that of "sedge/helpers", for scripts that import it. Both are forgotten when the
 * top level has run, and have pages of their own: so they are not a part of the image, which is copied for each message. */
_Alignas(IMAGE_PAGE) static char SOURCES[] = {
#embed "api.js"
    , 0,
#embed "helpers.js"
    , 0
};

const char *api_source(void) { return SOURCES; }

static const char *helpers_source(void) { return SOURCES + strlen(SOURCES) + 1; }

static const char HELPERS_NAME[] = "sedge/helpers";

/* The files of the script. */
typedef struct File {
    Text name, content;
} File;

static File *files;
static uint32_t file_count;

static const File *file_named(const char *name) {
    size_t len = strlen(name);
    for (uint32_t n = 0; n < file_count; n++) {
        if (files[n].name.len == len && memcmp(files[n].name.at, name, len) == 0) return &files[n];
    }
    return NULL;
}

/* Resolves `./x.js` and `../x.js` against the importing file. No name leads out of the function's folder. */
static char *resolve(JSContext *c, const char *importer, const char *name, void *opaque) {
    if (strcmp(name, "sedge") == 0 || strcmp(name, HELPERS_NAME) == 0) return js_strdup(c, name);
    if (strncmp(name, "./", 2) != 0 && strncmp(name, "../", 3) != 0) {
        JS_ThrowReferenceError(c, "cannot import \"%s\" (imported by %s): a function has its own files by relative paths "
                                  "(\"./%s\"), \"sedge\" and \"%s\"; bundle code of others into one file",
                               name, importer, name, HELPERS_NAME);
        return NULL;
    }
    char *path = js_malloc(c, strlen(importer) + strlen(name) + 2);
    if (!path) return NULL;
    const char *folder_end = strrchr(importer, '/');
    size_t len = folder_end ? (size_t)(folder_end - importer) : 0;
    memcpy(path, importer, len);
    for (const char *part = name; *part;) {
        const char *next = strchr(part, '/');
        size_t part_len = next ? (size_t)(next - part) : strlen(part);
        if (part_len == 2 && memcmp(part, "..", 2) == 0) {
            if (len == 0) {
                JS_ThrowReferenceError(c, "cannot import \"%s\" (imported by %s): it lies outside of the function's folder",
                                       name, importer);
                return NULL;
            }
            while (len > 0 && path[len - 1] != '/') len--;
            if (len > 0) len--;
        } else if (part_len > 0 && !(part_len == 1 && *part == '.')) {
            if (len > 0) path[len++] = '/';
            memcpy(path + len, part, part_len);
            len += part_len;
        }
        part += part_len + (next ? 1 : 0);
    }
    path[len] = 0;
    return path;
}

static int sedge_module(JSContext *c, JSModuleDef *module) {
    JSPropertyEnum *names;
    uint32_t count;
    if (JS_GetOwnPropertyNames(c, &names, &count, api_names, JS_GPN_STRING_MASK) < 0) return -1;
    for (uint32_t n = 0; n < count; n++) {
        const char *name = JS_AtomToCString(c, names[n].atom);
        if (!name || JS_SetModuleExport(c, module, name, JS_GetProperty(c, api_names, names[n].atom)) < 0) return -1;
    }
    return 0;
}

/* Sets the default export to what the loader left: parsed JSON or text. */
static int value_module(JSContext *c, JSModuleDef *module) {
    return JS_SetModuleExport(c, module, "default", JS_GetModulePrivateValue(c, module));
}

/* Runs a classic script, whose functions become globals. */
static int script_module(JSContext *c, JSModuleDef *module) {
    const char *name = JS_AtomToCString(c, JS_GetModuleName(c, module));
    const File *file = name ? file_named(name) : NULL;
    if (!file) return -1;
    JSValue result = JS_Eval(c, file->content.at, file->content.len, name, JS_EVAL_TYPE_GLOBAL);
    if (JS_IsException(result)) return -1;
    return JS_SetModuleExport(c, module, "default", result);
}

static JSModuleDef *compile_module(JSContext *c, const char *name, const char *source, size_t len) {
    JSValue compiled = JS_Eval(c, source, len, name, JS_EVAL_TYPE_MODULE | JS_EVAL_FLAG_COMPILE_ONLY);
    return JS_IsException(compiled) ? NULL : JS_VALUE_GET_PTR(compiled);
}

static JSModuleDef *load_module(JSContext *c, const char *name, void *opaque, JSValueConst attributes) {
    if (strcmp(name, "sedge") == 0) {
        JSModuleDef *module = JS_NewCModule(c, name, sedge_module);
        JSPropertyEnum *names;
        uint32_t count;
        if (!module || JS_GetOwnPropertyNames(c, &names, &count, api_names, JS_GPN_STRING_MASK) < 0) return NULL;
        for (uint32_t n = 0; n < count; n++) {
            const char *export = JS_AtomToCString(c, names[n].atom);
            if (!export || JS_AddModuleExport(c, module, export) < 0) return NULL;
        }
        return module;
    }
    if (phase == RUNNING) {
        JS_ThrowReferenceError(c, "cannot import \"%s\" while a message is handled: import it at the top of a file", name);
        return NULL;
    }
    if (strcmp(name, HELPERS_NAME) == 0) return compile_module(c, name, helpers_source(), strlen(helpers_source()));
    const File *file = file_named(name);
    if (!file) {
        JS_ThrowReferenceError(c, "cannot import \"%s\": there is no such file in the function's folder", name);
        return NULL;
    }
    const char *type = NULL;
    if (JS_IsObject(attributes)) {
        JSValue value = JS_GetPropertyStr(c, attributes, "type");
        if (!JS_IsUndefined(value) && !(type = JS_ToCString(c, value))) return NULL;
    }
    size_t dot = file->name.len > 5 ? file->name.len - 5 : 0;
    if (!type && memcmp(file->name.at + dot, ".json", 5) == 0 && dot > 0) type = "json";
    if (!type) return compile_module(c, name, file->content.at, file->content.len);
    if (strcmp(type, "script") == 0) {
        JSModuleDef *module = JS_NewCModule(c, name, script_module);
        return module && JS_AddModuleExport(c, module, "default") == 0 ? module : NULL;
    }
    JSValue value;
    if (strcmp(type, "json") == 0) value = JS_ParseJSON(c, file->content.at, file->content.len, name);
    else if (strcmp(type, "text") == 0) value = string(file->content);
    else value = JS_ThrowTypeError(c, "cannot import %s as \"%s\": the types are json, text and script", name, type);
    if (JS_IsException(value)) return NULL;
    JSModuleDef *module = JS_NewCModule(c, name, value_module);
    if (!module || JS_AddModuleExport(c, module, "default") < 0) return NULL;
    return JS_SetModulePrivateValue(c, module, value) < 0 ? NULL : module;
}

static int check_attributes(JSContext *c, void *opaque, JSValueConst attributes) {
    return 0;
}

void set_up_modules(void) {
    JS_SetModuleLoaderFunc2(runtime, resolve, load_module, check_attributes, NULL);
}

static uint32_t number_at(const char *at) {
    uint32_t number;
    memcpy(&number, at, sizeof number);
    return number;
}

/* Reads the files: the length of the name, the length of the content, the name, the content. The host has checked them. */
void read_files(const char *at, uint32_t len, const char **name, Text *content) {
    const char *end = at + len;
    for (const char *next = at; next < end; next += 8 + number_at(next) + number_at(next + 4)) file_count++;
    files = malloc(file_count * sizeof *files);
    check(files != NULL);
    for (uint32_t n = 0; n < file_count; n++) {
        uint32_t name_len = number_at(at), content_len = number_at(at + 4);
        char *copy = malloc(content_len + 1);
        check(copy != NULL);
        memcpy(copy, at + 8 + name_len, content_len);
        copy[content_len] = 0;
        files[n] = (File){ { at + 8, name_len }, { copy, content_len } };
        at += 8 + name_len + content_len;
    }
    char *first = malloc(files[0].name.len + 1);
    check(first != NULL);
    memcpy(first, files[0].name.at, files[0].name.len);
    first[files[0].name.len] = 0;
    *name = first;
    *content = files[0].content;
}

void forget_files(char *archive, uint32_t len) {
    memset(SOURCES, 0, sizeof SOURCES);
    for (uint32_t n = 0; n < file_count; n++) memset((char *)files[n].content.at, 0, files[n].content.len);
    memset(archive, 0, len);
    file_count = 0;
}

/* How a run fails: a rejection, a retry, or an exception with its place in the source. */
#include "engine.h"

JSClassID failure_class;
static JSValue error_prototype;

void set_up_failures(void) {
    const JSClassDef failure = { .class_name = "Failure" };
    JS_NewClassID(runtime, &failure_class);
    check(JS_NewClass(runtime, failure_class, &failure) == 0);
    JSValue error = JS_GetPropertyStr(context, JS_GetGlobalObject(context), "Error");
    error_prototype = JS_GetPropertyStr(context, error, "prototype");
}

JSValue throw_failure(JSValueConst reason, int64_t after_ms) {
    JSValue failure = JS_NewObjectProtoClass(context, error_prototype, failure_class);
    Failure *data = malloc(sizeof *data);
    if (JS_IsException(failure) || !data) return JS_EXCEPTION;
    data->after_ms = after_ms;
    JS_SetOpaque(failure, data);
    JS_DefinePropertyValueStr(context, failure, "message", JS_ToString(context, reason), JS_PROP_C_W_E);
    return JS_Throw(context, failure);
}

JSValue throw_rejection(const char *before, Text why) {
    char *reason = malloc(strlen(before) + why.len + 1);
    if (!reason) return JS_ThrowOutOfMemory(context);
    size_t len = strlen(before);
    memcpy(reason, before, len);
    memcpy(reason + len, why.at, why.len);
    return throw_failure(JS_NewStringLen(context, reason, len + why.len), -1);
}

/* Whether a place of a stack trace lies in a file of the script: `function.js:3:9`, but not `<input>:1:2` or this interface. */
static int is_place(const char *at, size_t len) {
    if (len < 6 || memcmp(at, "sedge:", 6) == 0 || *at == '<') return 0;
    size_t digits = 0, colons = 0;
    for (size_t n = len; n > 0; n--) {
        char c = at[n - 1];
        if (c >= '0' && c <= '9') digits++;
        else if (c == ':' && digits > 0 && colons < 2) { colons++; digits = 0; if (colons == 2) return n > 1; }
        else return 0;
    }
    return 0;
}

/* Finds the innermost place in the script's own files. */
static Text place_of(Text stack) {
    const char *line = stack.at, *end = stack.at + stack.len;
    while (line < end) {
        const char *eol = memchr(line, '\n', (size_t)(end - line));
        if (!eol) eol = end;
        const char *stop = eol > line && eol[-1] == ')' ? eol - 1 : eol, *start = stop;
        while (start > line && start[-1] != '(' && start[-1] != ' ') start--;
        if (is_place(start, (size_t)(stop - start))) return (Text){ start, (uint32_t)(stop - start) };
        line = eol + 1;
    }
    return (Text){ "", 0 };
}

Text describe(JSValueConst exception) {
    Text what, place = { "", 0 };
    if (JS_IsError(exception)) {
        what = text_of(exception);
        JSValue stack = JS_GetPropertyStr(context, exception, "stack");
        if (JS_IsString(stack)) place = place_of(text_of(stack));
    } else {
        JSValue shown = JS_IsObject(exception) ? JS_JSONStringify(context, exception, JS_UNDEFINED, JS_UNDEFINED)
                                               : JS_DupValue(context, exception);
        what = text_of(shown);
    }
    if (!what.at) {
        JS_FreeValue(context, JS_GetException(context));
        what = (Text){ "an error that cannot be shown", 29 };
    }
    const char *before = JS_IsError(exception) ? "" : "threw ";
    size_t len = strlen(before);
    char *text = malloc(len + what.len + place.len + 3);
    if (!text) return what;
    memcpy(text, before, len);
    memcpy(text + len, what.at, what.len);
    len += what.len;
    if (place.len > 0) {
        memcpy(text + len, " (", 2);
        memcpy(text + len + 2, place.at, place.len);
        text[len + 2 + place.len] = ')';
        len += place.len + 3;
    }
    return (Text){ text, (uint32_t)len };
}

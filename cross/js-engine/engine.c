/* The JavaScript engine as one core module: QuickJS-ng with the exports and imports of a function (guest-sdk/wit).
 *
 *   sedge:script/engine#load        runs a script's top level and freezes the memory, of which the host keeps an image
 *   sedge:function/handler#handle   handles one message, in a fresh instance with the memory of that image
 *
 * Nothing is freed on the way of a message: its instance ends with it. */
#include "engine.h"

/* Most of the shadow stack of 96 KiB. The rest is for functions that do not check. */
#define STACK_BYTES (84 * 1024)
/* Garbage that a run may make before it is collected. Most messages end before. */
#define GARBAGE_BYTES (256 * 1024)

JSRuntime *runtime;
JSContext *context;
enum Phase phase = LOADING;
#define DEFINE(name) JSAtom name_##name;
NAMES(DEFINE)

static JSValue handler;

static void *js_calloc_of(void *o, size_t count, size_t size) { (void)o; return calloc(count, size); }
static void *js_malloc_of(void *o, size_t size) { (void)o; return malloc(size); }
static void js_free_of(void *o, void *at) { (void)o; free(at); }
static void *js_realloc_of(void *o, void *at, size_t size) { (void)o; return realloc(at, size); }
static size_t js_size_of(const void *at) { return malloc_usable_size((void *)at); }
static const JSMallocFunctions ALLOCATOR = { js_calloc_of, js_malloc_of, js_free_of, js_realloc_of, js_size_of };

Text text_of(JSValueConst value) {
    size_t len;
    const char *at = JS_ToCStringLen(context, &len, value);
    return (Text){ at, at ? (uint32_t)len : 0 };
}

JSValue string(Text text) {
    return JS_NewStringLen(context, text.at, text.len);
}

JSValue optional_string(OptionalText text) {
    return text.is_some ? string(text.text) : JS_UNDEFINED;
}

/* Promises that were rejected and that nobody has awaited yet. */
#define MAX_REJECTED 32
static struct { void *promise; JSValue reason; } rejected[MAX_REJECTED];
static uint32_t rejected_count;

static void track_rejection(JSContext *c, JSValueConst promise, JSValueConst reason, bool is_handled, void *opaque) {
    void *at = JS_VALUE_GET_PTR(promise);
    for (uint32_t n = 0; n < rejected_count; n++) {
        if (rejected[n].promise != at) continue;
        if (is_handled) rejected[n] = rejected[--rejected_count];
        return;
    }
    if (!is_handled && rejected_count < MAX_REJECTED) {
        rejected[rejected_count].promise = JS_VALUE_GET_PTR(JS_DupValue(c, promise));
        rejected[rejected_count++].reason = JS_DupValue(c, reason);
    }
}

/* Runs jobs until none is left. Returns the value of `result`, or of the promise that it is. */
static JSValue settle(JSValue result, const char *what) {
    JSContext *c;
    int ran;
    while ((ran = JS_ExecutePendingJob(runtime, &c)) > 0) {}
    if (ran < 0) return JS_EXCEPTION;
    if (JS_IsPromise(result)) {
        switch (JS_PromiseState(context, result)) {
        case JS_PROMISE_REJECTED:
            return JS_Throw(context, JS_PromiseResult(context, result));
        case JS_PROMISE_PENDING:
            return JS_ThrowPlainError(context, "%s waits for a promise that nothing can settle any more: there are no timers and "
                                               "no network", what);
        default:
            result = JS_PromiseResult(context, result);
        }
    }
    if (rejected_count > 0) return JS_Throw(context, rejected[0].reason);
    return result;
}

static void set_up(void) {
    runtime = JS_NewRuntime2(&ALLOCATOR, NULL);
    check(runtime != NULL);
    JS_SetMaxStackSize(runtime, STACK_BYTES);
    JS_SetCanBlock(runtime, false);
    JS_SetHostPromiseRejectionTracker(runtime, track_rejection, NULL);
    set_up_modules();
    context = JS_NewContextRaw(runtime);
    check(context && JS_AddIntrinsicBaseObjects(context) == 0 && JS_AddIntrinsicDate(context) == 0
          && JS_AddIntrinsicEval(context) == 0 && JS_AddIntrinsicRegExp(context) == 0 && JS_AddIntrinsicJSON(context) == 0
          && JS_AddIntrinsicProxy(context) == 0 && JS_AddIntrinsicMapSet(context) == 0
          && JS_AddIntrinsicTypedArrays(context) == 0 && JS_AddIntrinsicPromise(context) == 0
          && JS_AddIntrinsicBigInt(context) == 0 && JS_AddIntrinsicAToB(context) == 0);
#define INTERN(name) name_##name = JS_NewAtom(context, #name);
    NAMES(INTERN)
    set_up_failures();
    set_up_api();
}

static JSValue run_top_level(const char *main, Text source) {
    JSValue module = JS_Eval(context, source.at, source.len, main,
                             JS_EVAL_TYPE_MODULE | JS_EVAL_FLAG_COMPILE_ONLY);
    if (JS_IsException(module)) return module;
    JSModuleDef *definition = JS_VALUE_GET_PTR(module);
    JSValue result = settle(JS_EvalFunction(context, module), "the top level");
    if (JS_IsException(result)) return result;
    JSValue exports = JS_GetModuleNamespace(context, definition);
    handler = JS_GetPropertyStr(context, exports, "handle");
    if (JS_IsFunction(context, handler)) return JS_UNDEFINED;
    return JS_ThrowPlainError(context, "%s does not export a function `handle`: write `export function handle(message) { .. }`",
                              main);
}

typedef struct Loaded {
    uint32_t is_error;
    Text error;
} Loaded;

static Loaded loaded;

EXPORT("sedge:script/engine#load") const Loaded *load(char *archive, uint32_t len, uint32_t allows_random) {
    const char *name;
    Text source;
    allow_random((int)allows_random);
    read_files(archive, len, &name, &source);
    JSValue result = run_top_level(name, source);
    if (JS_IsException(result)) {
        JSValue exception = JS_GetException(context);
        loaded = (Loaded){ 1, describe(exception) };
        return &loaded;
    }
    forget_files(archive, len);
    JS_RunGC(runtime);
    JSMemoryUsage usage;
    JS_ComputeMemoryUsage(runtime, &usage);
    JS_SetGCThreshold(runtime, (size_t)usage.malloc_size + GARBAGE_BYTES);
    phase = RUNNING;
    freeze_memory();
    return &loaded;
}

/* The first memory that is asked for is that of the archive. The engine comes before it, so that it is the same in the memory of each
   script, and the host holds it once. */
EXPORT("cabi_realloc") void *cabi_realloc(void *old, size_t old_size, size_t align, size_t size) {
    if (!runtime) set_up();
    /* A byte more, for the NUL that ends a text in C. */
    char *at = realloc(old, size + 1);
    check(at != NULL);
    at[size] = 0;
    return at;
}

static Outcome outcome;

EXPORT("sedge:function/handler@0.2.0#handle") Outcome *handle(const Message *handed_in) {
    set_clock(handed_in->received_at_ms);
    JSValue argument = message_object(handed_in);
    JSValue result = JS_Call(context, handler, JS_UNDEFINED, 1, (JSValueConst *)&argument);
    if (!JS_IsException(result)) result = settle(result, "handle");
    if (!JS_IsException(result) && read_outputs(result, &outcome)) return &outcome;

    JSValue exception = JS_GetException(context);
    Failure *failure = JS_GetOpaque(exception, failure_class);
    outcome = (Outcome){ .is_failure = 1 };
    if (!failure) {
        outcome.failure.kind = EXCEPTION;
        outcome.failure.reason = describe(exception);
        return &outcome;
    }
    Text reason = text_of(JS_GetPropertyStr(context, exception, "message"));
    if (failure->after_ms < 0) {
        outcome.failure.kind = REJECT;
        outcome.failure.reason = reason;
    } else {
        outcome.failure.kind = RETRY;
        outcome.failure.retry.after_ms = (uint64_t)failure->after_ms;
        outcome.failure.retry.reason = reason;
    }
    return &outcome;
}

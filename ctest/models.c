/* Models: opening every format, info, tokenizing and detokenizing, invalid calls. */
#define _XOPEN_SOURCE 700

#include <string.h>

#include "apl_ffi.h"
#include "check.h"

#define MODELS "tests/data/models/"

static int32_t opened(const char *path, const char *options)
{
    int32_t model = 0;
    CHECK_STATUS(APL_FFI_OK, apl_model_open(path, options, &model));
    return model;
}

static int error_has(const char *part)
{
    char text[1024];
    apl_ffi_last_error(text, sizeof text);
    if (strstr(text, part))
        return 1;
    printf("    the error is \"%s\", expected \"%s\" in it\n", text, part);
    return 0;
}

static void formats(void)
{
    static const char *const paths[] = {MODELS "qwen3", MODELS "qwen3.gguf", MODELS "gemma2", MODELS "gemma2.gguf",
                                        MODELS "mistral", MODELS "llama3.gguf"};
    static const char *const options[] = {NULL, "", "{\"bits\": 8, \"activations\": \"int8\"}",
                                          "{\"bits\": 32, \"mmap\": false}", "{\"bits\": 1, \"context\": 9}"};
    for (int i = 0; i < 6; i++)
        for (int o = 0; o < 5; o++) {
            char json[1024];
            int32_t model = opened(paths[i], options[o]);
            int32_t size = apl_model_info(model, json, sizeof json);
            CHECK(size > 0 && size < (int32_t)sizeof json && strstr(json, "\"vocabulary\":64"));
            CHECK(strstr(json, o == 4 ? "\"context\":9" : "\"context\":128") != NULL);
            CHECK_STATUS(APL_FFI_OK, apl_model_close(model));
        }
}

static void text_and_ids(void)
{
    static const char text[] = "abc de";
    int32_t model = opened(MODELS "qwen3", ""), ids[32], few[2] = {-7, -7};
    char back[64], cut[3];
    int32_t count = apl_model_tokenize(model, text, 0, ids, 32);
    CHECK(count > 2 && count < 32);
    CHECK_STATUS(count, apl_model_tokenize(model, text, 0, NULL, 0));
    CHECK_STATUS(count, apl_model_tokenize(model, text, 0, few, 1));
    CHECK(few[0] == ids[0] && few[1] == -7);
    CHECK_STATUS((int32_t)strlen(text), apl_model_detokenize(model, ids, count, back, sizeof back));
    CHECK(strcmp(back, text) == 0);
    CHECK_STATUS((int32_t)strlen(text), apl_model_detokenize(model, ids, count, cut, sizeof cut));
    CHECK(strcmp(cut, "ab") == 0);
    CHECK_STATUS(0, apl_model_detokenize(model, NULL, 0, back, sizeof back));
    CHECK(back[0] == 0);
    /* Exactly one beginning-of-sequence token, even if the tokenizer would add one too. */
    CHECK_STATUS(count + 1, apl_model_tokenize(model, text, 1, ids, 32));
    CHECK_STATUS(APL_FFI_OK, apl_model_close(model));
}

static void refused(void)
{
    int32_t model = -5, ids[4] = {0, 0, 0, 0};
    char text[8] = "same";
    CHECK_STATUS(APL_FFI_ERR_NULL, apl_model_open(NULL, "", &model));
    CHECK_STATUS(APL_FFI_ERR_NULL, apl_model_open(MODELS "qwen3", "", NULL));
    CHECK_STATUS(APL_FFI_ERR_IO, apl_model_open("no/such/model", "", &model));
    CHECK(error_has("apl_model_open: no/such/model cannot be opened"));
    CHECK_STATUS(APL_FFI_ERR_FORMAT, apl_model_open("ctest", "", &model));
    CHECK(error_has("neither a config.json nor a manifest"));
    CHECK_STATUS(APL_FFI_ERR_FORMAT, apl_model_open("ctest/check.h", "", &model));
    CHECK_STATUS(APL_FFI_ERR_UNSUPPORTED, apl_model_open("tests/data/small.safetensors", "", &model));
    CHECK_STATUS(APL_FFI_ERR_CONFIG, apl_model_open(MODELS "qwen3", "{\"bits\": 3}", &model));
    CHECK_STATUS(APL_FFI_ERR_CONFIG, apl_model_open(MODELS "qwen3", "{\"context\": 129}", &model));
    CHECK(error_has("expected at most 128"));
    CHECK_STATUS(APL_FFI_ERR_CONFIG, apl_model_open(MODELS "qwen3", "{\"seed\": 1}", &model));
    CHECK_STATUS(APL_FFI_ERR_ENCODING, apl_model_open("\xff", "", &model));
    CHECK(model == -5);

    model = opened(MODELS "qwen3", "");
    CHECK_STATUS(APL_FFI_ERR_ENCODING, apl_model_tokenize(model, "\xc3", 0, ids, 4));
    CHECK_STATUS(APL_FFI_ERR_NULL, apl_model_tokenize(model, NULL, 0, ids, 4));
    CHECK_STATUS(APL_FFI_ERR_NULL, apl_model_tokenize(model, "a", 0, NULL, 4));
    CHECK_STATUS(APL_FFI_ERR_LENGTH, apl_model_tokenize(model, "a", 0, ids, -1));
    CHECK(error_has("capacity is -1, expected 0 or more"));
    CHECK_STATUS(APL_FFI_ERR_LENGTH, apl_model_detokenize(model, ids, -1, text, sizeof text));
    CHECK_STATUS(APL_FFI_ERR_LENGTH, apl_model_detokenize(model, ids, 1, text, -1));
    ids[1] = 64;
    CHECK_STATUS(APL_FFI_ERR_RANGE, apl_model_detokenize(model, ids, 2, text, sizeof text));
    CHECK(error_has("ids[1] is 64, expected 0 to 63"));
    ids[1] = -1;
    CHECK_STATUS(APL_FFI_ERR_RANGE, apl_model_detokenize(model, ids, 2, text, sizeof text));
    CHECK_STATUS(APL_FFI_ERR_UNSUPPORTED, apl_model_chat(model, "[]", text, sizeof text));
    CHECK(error_has("no chat template"));
    /* Lengths are checked before NULL, and NULL before contents. */
    CHECK_STATUS(APL_FFI_ERR_LENGTH, apl_model_detokenize(model, ids, 2, text, -1));
    CHECK_STATUS(APL_FFI_ERR_LENGTH, apl_model_detokenize(model, NULL, 2, text, -1));
    CHECK_STATUS(APL_FFI_ERR_NULL, apl_model_detokenize(model, ids, 2, NULL, 10));
    CHECK_STATUS(APL_FFI_ERR_LENGTH, apl_model_chat(model, NULL, text, -1));
    CHECK_STATUS(APL_FFI_ERR_LENGTH, apl_model_chat(model, "[]", text, -1));
    CHECK_STATUS(APL_FFI_ERR_NULL, apl_model_chat(model, "[]", NULL, 10));
    CHECK(strcmp(text, "same") == 0);
    CHECK_STATUS(APL_FFI_OK, apl_model_close(model));
    CHECK_STATUS(APL_FFI_ERR_HANDLE, apl_model_close(model));
    CHECK(error_has("expected a live model handle"));
    CHECK_STATUS(APL_FFI_ERR_HANDLE, apl_model_info(0, text, sizeof text));
    CHECK_STATUS(APL_FFI_ERR_HANDLE, apl_model_tokenize(model, "a", 0, ids, 4));

    /* Handles of another kind. */
    const float w = 1;
    int32_t weights = 0;
    CHECK_STATUS(APL_FFI_OK, apl_weights_from_f32(&w, 1, 1, 1, "", &weights));
    CHECK_STATUS(APL_FFI_ERR_HANDLE, apl_model_close(weights));
    CHECK_STATUS(APL_FFI_ERR_HANDLE, apl_session_close(weights));
    CHECK_STATUS(APL_FFI_OK, apl_weights_free(weights));
}

int main(void)
{
    test("folders and GGUF files at every width", formats);
    test("text to ids and back", text_and_ids);
    test("what is refused, and how it is said", refused);
    CHECK_STATUS(APL_FFI_OK, apl_ffi_cleanup());
    return finish();
}

/* The window of a JPEG: the rows and columns that a crop needs, exactly as a decoder of the whole image gives them.
 *
 * Rows above the window are entropy-decoded (each block depends on the one before it) but neither transformed nor
 * converted, columns beside it likewise, and nothing below it is looked at but for markers. What is not a plain, intact
 * JPEG is left to the caller's other decoder, so that the result never depends on which of the two was there.
 *
 * C99 on libjpeg-turbo's own interface (2.0 or newer). No state between calls: any number of threads may call.
 */

#include <setjmp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>

#if !defined(LIBJPEG_TURBO_VERSION_NUMBER) || LIBJPEG_TURBO_VERSION_NUMBER < 2000000
#error "moxserve-needs-libjpeg-turbo-2"
#endif

/* What a call returns instead of a margin. */
#define NOT_FOR_US (-1) /* progressive, CMYK, unusual sampling, more than 8 bits, not the size that was said, ... */
#define DAMAGED (-2)    /* the decoder warned or gave up */

#define MARKER_RST0 0xD0
#define MARKER_RST7 0xD7
#define MARKER_EOI 0xD9
#define ROWS_AT_ONCE 16

typedef struct {
    struct jpeg_error_mgr manager; /* first: libjpeg knows this part only */
    jmp_buf failed;
} errors;

typedef struct {
    const unsigned char *data;
    size_t size;
    JDIMENSION image_height, image_width; /* as the caller read them from the header */
    JDIMENSION top, left, height, width;  /* of the window, inside the image */
    int channels;                         /* 1 or 3 */
    unsigned char *out;                   /* height rows of `stride` pixels */
    JDIMENSION stride;
} request;

static void give_up(j_common_ptr common) {
    longjmp(((errors *)common->err)->failed, 1);
}

static void count_warning(j_common_ptr common, int level) {
    if (level < 0)
        common->err->num_warnings++;
}

static void say_nothing(j_common_ptr common) {
    (void)common;
}

/* Only forms of which every version of the library gives the same pixels. */
static int is_plain(const struct jpeg_decompress_struct *jpeg, const request *wanted) {
    if (jpeg->image_height != wanted->image_height || jpeg->image_width != wanted->image_width)
        return 0;
    if (jpeg->data_precision != 8 || jpeg->progressive_mode || jpeg->arith_code)
        return 0;
    if (jpeg->comps_in_scan != jpeg->num_components)
        return 0;
    const jpeg_component_info *component = jpeg->comp_info;
    if (jpeg->num_components == 1)
        return jpeg->jpeg_color_space == JCS_GRAYSCALE && component->h_samp_factor == 1 && component->v_samp_factor == 1;
    if (jpeg->num_components != 3 || jpeg->jpeg_color_space != JCS_YCbCr)
        return 0;
    for (int number = 1; number < 3; number++)
        if (component[number].h_samp_factor != 1 || component[number].v_samp_factor != 1)
            return 0;
    int across = component->h_samp_factor, down = component->v_samp_factor;
    return (across == 1 && down == 1) || (across == 2 && (down == 1 || down == 2));
}

/* Leave out columns where that is worth it; return how many columns before the window are decoded all the same.
 *
 * The colours of a pixel are mixed with those beside it, except at the edges of what is decoded: there is a block more
 * on each side, so that the edges lie outside of the window. */
static JDIMENSION crop_columns(struct jpeg_decompress_struct *jpeg, const request *wanted) {
    JDIMENSION block = (JDIMENSION)(8 * jpeg->max_h_samp_factor);
    JDIMENSION first = wanted->left > block ? (wanted->left - block) / block * block : 0;
    JDIMENSION end = (wanted->left + wanted->width + block - 1) / block * block;
    end = jpeg->output_width - wanted->left - wanted->width > 2 * block ? end + block : jpeg->output_width;
    JDIMENSION columns = end - first;
    if (columns < jpeg->output_width)
        jpeg_crop_scanline(jpeg, &first, &columns);
    return wanted->left - first;
}

/* Decode the window's rows; return 0 when something was damaged. */
static int read_rows(struct jpeg_decompress_struct *jpeg, const request *wanted) {
    size_t length = (size_t)wanted->stride * (size_t)wanted->channels;
    if (wanted->top > 0 && jpeg_skip_scanlines(jpeg, wanted->top) != wanted->top)
        return 0;
    JDIMENSION done = 0;
    while (done < wanted->height && jpeg->err->num_warnings == 0) {
        JSAMPROW rows[ROWS_AT_ONCE];
        JDIMENSION count = 0;
        for (; count < ROWS_AT_ONCE && done + count < wanted->height; count++)
            rows[count] = wanted->out + (size_t)(done + count) * length;
        JDIMENSION read = jpeg_read_scanlines(jpeg, rows, count);
        if (read == 0)
            return 0;
        done += read;
    }
    return jpeg->err->num_warnings == 0;
}

/* Whether nothing but coded data and restart markers lies between here and the end mark. */
static int rest_is_plain(const struct jpeg_decompress_struct *jpeg) {
    int marker = jpeg->unread_marker;
    const unsigned char *at = jpeg->src->next_input_byte;
    const unsigned char *end = at + jpeg->src->bytes_in_buffer;
    for (;;) {
        if (marker == MARKER_EOI)
            return 1;
        if (marker != 0 && (marker < MARKER_RST0 || marker > MARKER_RST7))
            return 0;
        at = at < end ? memchr(at, 0xFF, (size_t)(end - at)) : NULL;
        if (at == NULL)
            return 0;
        while (at < end && *at == 0xFF)
            at++;
        if (at == end)
            return 0;
        marker = *at++;
    }
}

static int decode(struct jpeg_decompress_struct *jpeg, const request *wanted) {
    jpeg_mem_src(jpeg, (unsigned char *)wanted->data, (unsigned long)wanted->size);
    if (jpeg_read_header(jpeg, TRUE) != JPEG_HEADER_OK || !is_plain(jpeg, wanted))
        return NOT_FOR_US;
    jpeg->out_color_space = wanted->channels == 1 ? JCS_GRAYSCALE : JCS_RGB;
    jpeg->dct_method = JDCT_ISLOW;
    jpeg->do_fancy_upsampling = TRUE;
    if (!jpeg_start_decompress(jpeg) || jpeg->output_components != wanted->channels)
        return NOT_FOR_US;
    JDIMENSION margin = crop_columns(jpeg, wanted);
    if (jpeg->output_width > wanted->stride || margin + wanted->width > jpeg->output_width)
        return NOT_FOR_US;
    if (!read_rows(jpeg, wanted) || !rest_is_plain(jpeg))
        return DAMAGED;
    return (int)margin;
}

/* Decode a window into `out`, which holds `height * stride * channels` bytes.
 *
 * Returns how many pixels before the window each row begins with (the window's columns follow, then others until
 * `stride`), or a negative number where another decoder must be asked; `out` holds anything then. */
int moxserve_decode_window(const unsigned char *data, size_t size, int image_height, int image_width, int top, int left,
                           int height, int width, int channels, unsigned char *out, int stride) {
    if (data == NULL || out == NULL || (channels != 1 && channels != 3) || image_height < 1 || image_width < 1)
        return NOT_FOR_US;
    if (top < 0 || left < 0 || height < 1 || width < 1 || height > image_height - top || width > image_width - left)
        return NOT_FOR_US;
    if (stride < width || (unsigned long)size != size)
        return NOT_FOR_US;
    const request wanted = {
        .data = data, .size = size,
        .image_height = (JDIMENSION)image_height, .image_width = (JDIMENSION)image_width,
        .top = (JDIMENSION)top, .left = (JDIMENSION)left, .height = (JDIMENSION)height, .width = (JDIMENSION)width,
        .channels = channels, .out = out, .stride = (JDIMENSION)stride,
    };
    struct jpeg_decompress_struct jpeg;
    errors handler;
    memset(&jpeg, 0, sizeof jpeg);
    jpeg.err = jpeg_std_error(&handler.manager);
    handler.manager.error_exit = give_up;
    handler.manager.emit_message = count_warning;
    handler.manager.output_message = say_nothing;
    if (setjmp(handler.failed)) {
        /* Nothing that changed since is read but what `jpeg` holds; it was zero if the library refused to begin. */
        jpeg_destroy_decompress(&jpeg);
        return DAMAGED;
    }
    jpeg_create_decompress(&jpeg);
    int found = decode(&jpeg, &wanted);
    jpeg_destroy_decompress(&jpeg);
    return found;
}
